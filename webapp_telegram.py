#!/usr/bin/python3 -EsS
"""The link page: where an analyst connects a Telegram chat and sees what the service does for them.

A CGI program (RFC 3875) for any web server that can log people in; `application` is the same as WSGI (PEP 3333).
It is compiled anew for every request, being the program itself, so there is nothing here.
"""

from wsgiref.handlers import CGIHandler

from webapp.app import application

if __name__ == "__main__":
    CGIHandler().run(application)
