"""With this folder on PYTHONPATH, Python and the Python processes it starts reach no network."""

import socket

connect = socket.socket.connect


def refuse(*args, **kwargs):
    raise AssertionError(f"network access: {args}")


def connect_locally(self, address):  # processes of one machine talk to each other in this way
    return connect(self, address) if self.family == socket.AF_UNIX else refuse(self, address)


socket.getaddrinfo = socket.create_connection = refuse
socket.socket.connect, socket.socket.connect_ex = connect_locally, refuse
