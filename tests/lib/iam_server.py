"""The IAM of the box: moto behind a thin layer, and an instance metadata service.

The layer adds what moto lacks: paging as AWS does it, AIDA-style ids, conversion of keys between SSH and PEM, the
five-key limit, checked signatures, a log of the calls received, and faults on demand.

    iam_server.py READY_FD < SETUP.json

SETUP is {"fixtures": ..., "public_keys": {NAME: [TEXT, ...]}, "filler_key": TEXT, "admin": {...}, "role": {...}}.
"""

import base64
import collections
import contextlib
import datetime
import fnmatch
import hashlib
import hmac
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
import urllib.parse
import xml.etree.ElementTree as ET

from cryptography.hazmat.primitives import serialization

ACCOUNT = "123456789012"
REGION = "us-east-1"
API = ("127.0.0.1", 5000)
CONTROL = ("127.0.0.1", 5001)
METADATA = ("169.254.169.254", 80)
PAGE_DEFAULT = 100
KEYS_MAX = 5
# The element of each listing's answer that holds its entries.
LISTS = {"GetGroup": "Users", "ListUsers": "Users", "ListGroupsForUser": "Groups", "ListSSHPublicKeys": "SSHPublicKeys",
         "ListGroups": "Groups"}
HANG_SECONDS = 600


class Log:
    """The calls received, and the faults that are to happen."""

    def __init__(self):
        self.lock = threading.Lock()
        self.calls = []
        self.delay = 0.0
        self.fail = ""
        self.only = ""
        self.tags = {}
        self.policy, self.role, self.role_arn = None, None, f"arn:aws:iam::{ACCOUNT}:role/pam_iam"
        self.seconds, self.working, self.since = 0.0, 0, 0.0

    def add(self, action, params):
        with self.lock:
            self.calls.append({"time": time.time(), "action": action, "params": params})
        line = " ".join([action] + [f"{name}={value}" for name, value in params.items() if "Body" not in name])
        print(line, flush=True)

    @contextlib.contextmanager
    def at_work(self):
        """Counts the time in which any call is being answered."""
        with self.lock:
            self.working += 1
            if self.working == 1:
                self.since = time.monotonic()
        try:
            yield
        finally:
            with self.lock:
                self.working -= 1
                if self.working == 0:
                    self.seconds += time.monotonic() - self.since

    def fault_for(self, action):
        with self.lock:
            if self.only and self.only != action:
                return 0.0, ""
            return self.delay, self.fail

    def control(self, query):
        """?delay=SECONDS, ?fail=KIND, &only=ACTION, ?clear, ?log, ?tag=NAME, &value=VALUE, ?policy=JSON, ?role=ARN"""
        with self.lock:
            if "delay" in query:
                self.delay = float(query["delay"][0] or 0)
            if "fail" in query:
                fail = query["fail"][0]
                if fail not in ("", "hang", "reset", "truncated", "empty", *FAULTS):
                    return {"error": f"unknown fault {fail!r}"}
                self.fail = fail
            if "delay" in query or "fail" in query:
                self.only = query.get("only", [""])[0]
            if "tag" in query:
                self.tags.pop(query["tag"][0], None)
                if "value" in query:
                    self.tags[query["tag"][0]] = query["value"][0]
            if "policy" in query:
                self.policy = json.loads(query["policy"][0] or "null")
            if "role" in query:
                self.role_arn = query["role"][0]
            if "clear" in query:
                self.calls, self.seconds = [], 0.0
            if "log" in query:
                return {"calls": list(self.calls), "seconds": self.seconds}
        return {"ok": True}


LOG = Log()


class Policy:
    """What a role may do: only what a statement allows. What is not understood here is an error, not an allowance."""

    def __init__(self, document, users):
        self.statements, self.users = document["Statement"], users
        for statement in self.statements:
            if statement["Effect"] != "Allow" or set(statement) - {"Sid", "Effect", "Action", "Resource"}:
                raise ValueError(f"a statement that this stand-in does not evaluate: {statement}")

    def allows(self, action, form):
        resource = self.resource(action, form)
        service = "sts" if action == "AssumeRole" else "iam"
        return any(statement["Effect"] == "Allow" and matches(statement["Action"], f"{service}:{action}")
                   and matches(statement["Resource"], resource) for statement in self.statements)

    def resource(self, action, form):
        if action == "AssumeRole":
            return form.get("RoleArn", "")
        if action == "GetGroup":
            return f"arn:aws:iam::{ACCOUNT}:group/{form.get('GroupName', '')}"
        if "UserName" in form:
            user = self.users.get(form["UserName"])
            return f"arn:aws:iam::{ACCOUNT}:user{user.path if user else '/'}{form['UserName']}"
        # Actions like ListUsers have no resource but all.
        return "*"


def trusts(role, caller, external_id):
    """Whether a role lets `caller` assume it, by its trust policy."""
    if role is None:
        return False
    for statement in json.loads(role.assume_role_policy_document)["Statement"]:
        wanted = statement.get("Condition", {}).get("StringEquals", {}).get("sts:ExternalId")
        if (statement["Effect"] == "Allow" and matches(statement["Action"], "sts:AssumeRole")
                and matches(statement["Principal"]["AWS"], caller or "") and wanted in (None, external_id)):
            return True
    return False


def matches(patterns, text):
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatch.fnmatchcase(text, pattern) if text != "*" else pattern == "*" for pattern in patterns)


class Reset(ConnectionError):
    """The connection is to be cut off without an answer."""


def error(code, message, status):
    body = (f'<ErrorResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/"><Error><Type>Sender</Type><Code>{code}'
            f"</Code><Message>{message}</Message></Error><RequestId>{secrets.token_hex(16)}</RequestId></ErrorResponse>")
    return status, "text/xml", body.encode()


FAULTS = {
    "throttle": lambda: error("Throttling", "Rate exceeded", "400 Bad Request"),
    "denied": lambda: error("AccessDenied", "User is not authorized to perform this action", "403 Forbidden"),
    "skew": lambda: error("SignatureDoesNotMatch", "Signature expired: 20260101T000000Z is now earlier", "403 Forbidden"),
    "credentials": lambda: error("InvalidClientTokenId", "The security token included in the request is invalid", "403 Forbidden"),
    "expired": lambda: error("ExpiredToken", "The security token included in the request is expired", "403 Forbidden"),
    "503": lambda: error("ServiceUnavailable", "Service unavailable", "503 Service Unavailable"),
}


# --- signatures ---------------------------------------------------------------------------------------------------


class Credentials:
    """Who may call: access key id -> (secret, session token or None)."""

    def __init__(self):
        self.known = {}

    def secret(self, key_id, token):
        if key_id in self.known:
            secret, wanted = self.known[key_id]
            return secret if (wanted or "") == (token or "") else None
        role = self.assumed(key_id)
        return role.secret_access_key if role and role.session_token == token else None

    def assumed(self, key_id):
        from moto.sts.models import sts_backends
        roles = (role for backends in sts_backends.values() for backend in backends.values() for role in backend.assumed_roles)
        return next((role for role in roles if role.access_key_id == key_id), None)

    def assumed_role(self, key_id):
        """The ARN of the role that was assumed with a key; None if it belongs to nobody who assumed one."""
        role = None if key_id in self.known else self.assumed(key_id)
        return role and role.role_arn


CREDENTIALS = Credentials()


def refusal(environ, body):
    """Checks the signature of a request as AWS does (Signature Version 4). None if it is good."""
    header = environ.get("HTTP_AUTHORIZATION", "")
    match = re.fullmatch(r"AWS4-HMAC-SHA256 Credential=([^,]+), ?SignedHeaders=([^,]+), ?Signature=([0-9a-f]+)", header)
    if not match:
        return error("MissingAuthenticationToken", "Request is missing Authentication Token", "403 Forbidden")
    credential, signed, signature = match.groups()
    key_id, date, region, service, _ = credential.split("/")
    if service == "iam" and region != REGION:
        return error("SignatureDoesNotMatch", f"Credential should be scoped to a valid region, not {region}", "403 Forbidden")
    secret = CREDENTIALS.secret(key_id, environ.get("HTTP_X_AMZ_SECURITY_TOKEN"))
    if secret is None:
        return error("InvalidClientTokenId", "The security token included in the request is invalid", "403 Forbidden")
    stamp = environ.get("HTTP_X_AMZ_DATE", "")
    headers = ""
    for name in signed.split(";"):
        cgi = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}.get(
            name, "HTTP_" + name.upper().replace("-", "_"))
        headers += f"{name}:{' '.join(environ.get(cgi, '').split())}\n"
    request = "\n".join([environ["REQUEST_METHOD"], urllib.parse.quote(environ.get("PATH_INFO", "/")),
                         environ.get("QUERY_STRING", ""), headers, signed, hashlib.sha256(body).hexdigest()])
    to_sign = "\n".join(["AWS4-HMAC-SHA256", stamp, f"{date}/{region}/{service}/aws4_request",
                         hashlib.sha256(request.encode()).hexdigest()])
    key = ("AWS4" + secret).encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    if not hmac.compare_digest(hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest(), signature):
        return error("SignatureDoesNotMatch", "The request signature we calculated does not match", "403 Forbidden")
    sent = datetime.datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.timezone.utc)
    if abs((datetime.datetime.now(datetime.timezone.utc) - sent).total_seconds()) > 300:
        return error("SignatureDoesNotMatch", f"Signature expired: {stamp}", "403 Forbidden")
    return None


# --- the API ------------------------------------------------------------------------------------------------------


class Iam:
    """The WSGI application: moto's, with the layer around it."""

    def __init__(self, moto):
        self.moto = moto
        self.rests = {}
        self.lock = threading.Lock()

    def __call__(self, environ, start_response):
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length)
        with LOG.at_work():
            status, kind, answer = self.answer(environ, body)
        start_response(status, [("Content-Type", kind), ("Content-Length", str(len(answer)))])
        return [answer]

    def answer(self, environ, body):
        form = {name: values[0] for name, values in urllib.parse.parse_qs(body.decode()).items()}
        action = form.get("Action", "")
        if action:
            params = {name: value for name, value in form.items() if name not in ("Action", "Version")}
            LOG.add(action, params)
        delay, fail = LOG.fault_for(action)
        time.sleep(delay)
        if fail == "hang":
            time.sleep(HANG_SECONDS)
        if fail in ("hang", "reset"):
            raise Reset
        if fail in FAULTS:
            return FAULTS[fail]()
        # Who shows a web identity has no AWS credentials yet: the one action that AWS takes unsigned here.
        refused = None if action == "AssumeRoleWithWebIdentity" else refusal(environ, body)
        if refused:
            return refused
        denied = self.denial(environ, form, action)
        if denied:
            return denied
        status, kind, answer = self.handle(environ, body, form, action)
        if fail == "truncated":
            answer = self.cut_off(answer, action)
        if fail == "empty" and action in LISTS:
            answer = shortened(answer, action, lambda entries: [], truncated=False)
        return status, kind, answer

    def denial(self, environ, form, action):
        """What the policies of the caller's role, or the trust policy of the one to be assumed, do not allow. None if they do.
        Who has no role, as the administrator, may do everything."""
        from moto.iam.models import iam_backends
        backend = iam_backends[ACCOUNT]["aws"]
        roles = {role.arn: role for role in backend.roles.values()}
        key_id = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].partition("/")[0]
        caller, policies = CREDENTIALS.assumed_role(key_id), None
        if key_id == LOG.role:
            caller, policies = LOG.role_arn, None if LOG.policy is None else [LOG.policy]
        elif caller:
            policies = [json.loads(text) for text in roles[caller].policies.values()] if caller in roles else []
        if policies is None and action != "AssumeRole":
            # Before anything that costs more the more users there are.
            return None
        users = {user.name: user for user in backend.users.values()}
        allowed = (policies is None or action == "GetCallerIdentity"
                   or any(Policy(policy, users).allows(action, form) for policy in policies))
        if allowed and (action != "AssumeRole" or trusts(roles.get(form.get("RoleArn")), caller, form.get("ExternalId"))):
            return None
        service, resource = "sts" if action == "AssumeRole" else "iam", Policy({"Statement": []}, users).resource(action, form)
        return error("AccessDenied", f"User: {caller}/i-0123456789abcdef0 is not authorized to perform: {service}:{action} "
                     f"on resource: {resource}", "403 Forbidden")

    def handle(self, environ, body, form, action):
        if action in LISTS and form.get("Marker"):
            return self.next_page(form)
        if action == "UploadSSHPublicKey":
            from moto.iam.models import iam_backends
            user = iam_backends[ACCOUNT]["aws"].users.get(form.get("UserName"))
            if user and len(user.ssh_public_keys) >= KEYS_MAX:
                return error("LimitExceeded", f"Cannot exceed quota for SSHPublicKeysPerUser: {KEYS_MAX}", "409 Conflict")
        answer = listing(action, form)
        if answer is not None:
            return "200 OK", "text/xml", self.first_page(answer, LISTS[action], form)
        status, kind, answer = self.ask_moto(environ, body)
        if status.startswith("200") and action in LISTS:
            return status, kind, self.first_page(answer, LISTS[action], form)
        if status.startswith("200") and action == "GetSSHPublicKey":
            return status, kind, encoded(answer, form.get("Encoding", "SSH"))
        return status, kind, answer

    def ask_moto(self, environ, body):
        import io
        environ = dict(environ, **{"wsgi.input": io.BytesIO(body)})
        seen = {}

        def start_response(status, headers, exc_info=None):
            seen.update(status=status, kind=dict(headers).get("Content-Type", "text/xml"))

        answer = b"".join(self.moto(environ, start_response))
        return seen["status"], seen["kind"], answer

    def first_page(self, answer, element, form):
        root = parse(answer)
        found = find(root, element)
        if found is None:
            return answer
        return self.page(root, list(found), element, form)

    def next_page(self, form):
        with self.lock:
            rest = self.rests.pop(form["Marker"], None)
        if rest is None:
            return error("ValidationError", "Invalid Marker", "400 Bad Request")
        root, entries, element = rest
        return "200 OK", "text/xml", self.page(root, entries, element, form)

    def page(self, root, entries, element, form):
        size = max(1, min(1000, int(form.get("MaxItems", PAGE_DEFAULT))))
        found, result = find(root, element), list(root)[0]
        found[:] = entries[:size]
        for name in ("IsTruncated", "Marker"):
            for old in [child for child in result if local(child) == name]:
                result.remove(old)
        space = found.tag[:-len(local(found))]
        more = len(entries) > size
        ET.SubElement(result, space + "IsTruncated").text = "true" if more else "false"
        if more:
            marker = secrets.token_urlsafe(24)
            ET.SubElement(result, space + "Marker").text = marker
            with self.lock:
                self.rests[marker] = (root, entries[size:], element)
        return ET.tostring(root)

    def cut_off(self, answer, action):
        """Half a listing that says there is more and not where; of anything else, half the bytes."""
        if action not in LISTS:
            return answer[:len(answer) // 2]
        return shortened(answer, action, lambda entries: entries[:len(entries) // 2], truncated=True)


def shortened(answer, action, keep, truncated):
    """A listing with fewer entries, which says as it is told whether there are more, and never where."""
    root = parse(answer)
    found, result = find(root, LISTS[action]), list(root)[0]
    if found is None:
        return answer
    found[:] = keep(list(found))
    for child in list(result):
        if local(child) == "IsTruncated":
            child.text = "true" if truncated else "false"
        if local(child) == "Marker":
            result.remove(child)
    return ET.tostring(root)


def listing(action, form):
    """Lists of thousands of users, which moto takes seconds to render. None for what moto is to answer."""
    from moto.iam.models import iam_backends
    backend = iam_backends[ACCOUNT]["aws"]
    if action == "ListUsers" and not form.get("PathPrefix"):
        group, users = None, list(backend.users.values())
    elif action == "GetGroup" and form.get("GroupName") in backend.groups:
        group = backend.groups[form["GroupName"]]
        users = list(group.users)
    else:
        return None
    space = "{https://iam.amazonaws.com/doc/2010-05-08/}"
    root = ET.Element(f"{space}{action}Response")
    result = ET.SubElement(root, f"{space}{action}Result")

    def add(parent, tag, fields):
        element = ET.SubElement(parent, space + tag)
        for name, value in fields:
            ET.SubElement(element, space + name).text = value

    if group is not None:
        add(result, "Group", [("Path", group.path), ("GroupName", group.name), ("GroupId", group.id), ("Arn", group.arn),
                              ("CreateDate", group.create_date.strftime("%Y-%m-%dT%H:%M:%SZ"))])
    found = ET.SubElement(result, f"{space}Users")
    for user in users:
        add(found, "member", [("Path", user.path), ("UserName", user.name), ("UserId", user.id), ("Arn", user.arn),
                              ("CreateDate", user.create_date.strftime("%Y-%m-%dT%H:%M:%SZ"))])
    return root


def parse(answer):
    return answer if isinstance(answer, ET.Element) else ET.fromstring(answer)


def local(element):
    return element.tag.rsplit("}", 1)[-1]


def find(root, name):
    return next((element for element in root.iter() if local(element) == name), None)


def encoded(answer, encoding):
    """A key in the encoding that was asked for, in whichever it was uploaded."""
    root = parse(answer)
    body = find(root, "SSHPublicKeyBody")
    text = (body.text or "").strip().encode()
    try:
        pem = text.startswith(b"-----")
        load = serialization.load_pem_public_key if pem else serialization.load_ssh_public_key
        key = load(text)
        if encoding == "PEM":
            form, outer = serialization.PublicFormat.SubjectPublicKeyInfo, serialization.Encoding.PEM
        else:
            form, outer = serialization.PublicFormat.OpenSSH, serialization.Encoding.OpenSSH
        body.text = key.public_bytes(outer, form).decode()
    except Exception:
        # A test stored what is no key: it is handed out as it is.
        pass
    return ET.tostring(root)


# --- the metadata service -----------------------------------------------------------------------------------------


class Metadata:
    """An instance metadata service that takes version 2 only: every request needs a token that it gave out."""

    def __init__(self, role):
        self.role = role
        self.tokens = set()

    def __call__(self, environ, start_response):
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        LOG.add("IMDS", {"path": path})
        # Only when asked for by name: a fault of IAM is none of the instance's.
        fail = LOG.fault_for("IMDS")[1] if LOG.only == "IMDS" else ""
        if fail == "hang":
            time.sleep(HANG_SECONDS)
        status, answer = ("403 Forbidden", "") if fail else self.answer(method, path, environ)
        start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(answer))),
                                ("X-aws-ec2-metadata-token-ttl-seconds", "21600")])
        return [answer.encode()]

    def answer(self, method, path, environ):
        if method == "PUT" and path == "/latest/api/token":
            if "HTTP_X_AWS_EC2_METADATA_TOKEN_TTL_SECONDS" not in environ:
                return "400 Bad Request", ""
            token = secrets.token_urlsafe(32)
            self.tokens.add(token)
            return "200 OK", token
        if environ.get("HTTP_X_AWS_EC2_METADATA_TOKEN") not in self.tokens:
            return "401 Unauthorized", ""
        expiration = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=6)
        credentials = {"Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": self.role["id"],
                       "SecretAccessKey": self.role["secret"], "Token": self.role["token"],
                       "LastUpdated": "2026-01-01T00:00:00Z", "Expiration": expiration.strftime("%Y-%m-%dT%H:%M:%SZ")}
        name = "pam_iam"
        paths = {
            "/latest/meta-data/iam/security-credentials": name,
            f"/latest/meta-data/iam/security-credentials/{name}": json.dumps(credentials),
            "/latest/meta-data/placement/region": REGION,
            "/latest/meta-data/instance-id": "i-0123456789abcdef0",
            "/latest/dynamic/instance-identity/document": json.dumps(
                {"accountId": ACCOUNT, "region": REGION, "instanceId": "i-0123456789abcdef0"}),
        }
        paths.update({f"/latest/meta-data/tags/instance/{name}": value for name, value in LOG.tags.items()})
        answer = paths.get(path.rstrip("/"))
        return ("200 OK", answer) if answer is not None else ("404 Not Found", "")


def control(environ, start_response):
    query = urllib.parse.parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    said = LOG.control(query)
    answer = json.dumps(said).encode()
    start_response("400 Bad Request" if "error" in said else "200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
    return [answer]


# --- fixtures and start -------------------------------------------------------------------------------------------


def aws_id(prefix, name, generation):
    """An id in AWS's form. The first alice has the same in every box, a second one of the name has another."""
    digest = hashlib.sha256(f"{prefix} {name} {generation}".encode()).digest()
    return prefix + base64.b32encode(digest).decode()[:17]


def real_ids():
    """Ids as AWS makes them: AIDA for users, AGPA for groups."""
    import moto.iam.models as models
    made = collections.Counter()
    for kind, prefix in ((models.User, "AIDA"), (models.Group, "AGPA")):
        def patched(self, *args, original=kind.__init__, prefix=prefix, **kwargs):
            original(self, *args, **kwargs)
            made[prefix, self.name] += 1
            self.id = aws_id(prefix, self.name, made[prefix, self.name])
        kind.__init__ = patched


def load(setup):
    from moto.iam.models import iam_backends
    backend = iam_backends[ACCOUNT]["aws"]
    fixtures = setup["fixtures"]
    LOG.tags.update(fixtures.get("instance", {}).get("tags", {}))
    for group in fixtures.get("groups", []):
        backend.create_group(group)
    for user in fixtures.get("users", []):
        tags = [{"Key": key, "Value": value} for key, value in user.get("tags", {}).items()]
        made = backend.create_user(REGION, user["name"], user.get("path", "/"), tags)
        if "id" in user:
            made.id = user["id"]
        for group in user.get("groups", []):
            backend.add_user_to_group(group, user["name"])
        for key, text in zip(user.get("keys", []), setup["public_keys"].get(user["name"], [])):
            uploaded = made.upload_ssh_public_key(key.get("body", text))
            uploaded.status = key.get("status", "Active")
    filler = fixtures.get("filler")
    for number in range(filler["count"] if filler else 0):
        made = backend.create_user(REGION, f"{filler['prefix']}{number}")
        for group in filler.get("groups", []):
            backend.groups[group].users.append(made)
        made.upload_ssh_public_key(setup["filler_key"])


def main():
    setup = json.load(sys.stdin)
    from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *args):
            pass

        def connection_dropped(self, error, environ=None):
            if isinstance(error, Reset):
                # A reset and no orderly end, when the socket is closed with this.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.close_connection = True

    class Server(ThreadedWSGIServer):
        daemon_threads = True
        request_queue_size = 1024

    CREDENTIALS.known[setup["admin"]["id"]] = (setup["admin"]["secret"], None)
    LOG.role = setup["role"]["id"]
    CREDENTIALS.known[setup["role"]["id"]] = (setup["role"]["secret"], setup["role"]["token"])
    real_ids()
    load(setup)
    applications = {API: Iam(DomainDispatcherApplication(create_backend_app)), CONTROL: control, METADATA: Metadata(setup["role"])}
    # All have their addresses before any answers.
    for server in [Server(*address, application, handler=Handler) for address, application in applications.items()]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    os.write(int(sys.argv[1]), b"ready\n")
    threading.Event().wait()


if __name__ == "__main__":
    main()
