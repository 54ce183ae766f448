"""What lies between a host and AWS, for tests: TLS as AWS ends it, a proxy that logs, and the portal of IAM Identity Center.

    way.py tls ADDRESS CERTIFICATE KEY     ends TLS at ADDRESS:443, and passes everything on to the IAM of the box
    way.py proxy PORT LOG                  answers CONNECT on 127.0.0.1:PORT, logs what it is asked for, and goes to 127.0.0.9:443
    way.py portal ADDRESS CERTIFICATE KEY CREDENTIALS     gives each bearer of a token the credentials of a file
"""

import http.server
import socket
import ssl
import sys
import threading

IAM = ("127.0.0.1", 5000)
AWS = ("127.0.0.9", 443)


def pump(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
    except OSError:
        pass
    for end in (source, target):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def join(one, other):
    back = threading.Thread(target=pump, args=(other, one), daemon=True)
    back.start()
    pump(one, other)
    back.join()


def serve(address, handle):
    with socket.create_server(address) as listener:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=handle, args=(client,), daemon=True).start()


def context(certificate, key):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(certificate, key)
    return made


def tls(address, certificate, key):
    made = context(certificate, key)

    def handle(client):
        try:
            secured = made.wrap_socket(client, server_side=True)
        except (ssl.SSLError, OSError):
            return
        join(secured, socket.create_connection(IAM))

    serve((address, 443), handle)


def proxy(port, log):
    def handle(client):
        request = b""
        while b"\r\n\r\n" not in request:
            if not (data := client.recv(4096)):
                return
            request += data
        with open(log, "a", encoding="ascii") as file:
            file.write(request.split(b"\r\n")[0].decode() + "\n")
        if not request.startswith(b"CONNECT "):
            client.sendall(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
            return
        server = socket.create_connection(AWS)
        client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        join(client, server)

    serve(("127.0.0.1", int(port)), handle)


def portal(address, certificate, key, credentials):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.headers.get("x-amz-sso_bearer_token") and self.path.startswith("/federation/credentials")
            with open(credentials, "rb") as file:
                body = file.read() if known else b"{}"
            self.send_response(200 if known else 401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer((address, 443), Handler)
    server.socket = context(certificate, key).wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    {"tls": tls, "proxy": proxy, "portal": portal}[sys.argv[1]](*sys.argv[2:])
