"""The link page, a CGI program of the web server: links a login with a chat, shows its scripts."""
