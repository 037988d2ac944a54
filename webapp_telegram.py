#!/usr/bin/python3 -EsS
"""The link page, on which an analyst connects a Telegram chat and sees scripts and notifications.

A CGI program (RFC 3875) for any web server that can log people in; `application` is the same as WSGI (PEP 3333).
Python compiles this file anew for every request, so the code is in webapp/.
"""

from wsgiref.handlers import CGIHandler

from webapp.app import application

if __name__ == "__main__":
    CGIHandler().run(application)
