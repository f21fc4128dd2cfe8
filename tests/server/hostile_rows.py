"""Requests that mean harm, each with the answers that are right."""

from __future__ import annotations

import gzip
import os

from hostile import head, post
from hostile_files import (
    CANARY,
    FORM,
    bomb,
    deflated_zeros,
    dicom,
    directory_of,
    encrypted,
    form,
    linked,
    nifti,
    nifti2,
    nrrd,
    overlapping,
    packed,
    part,
    upload,
)

MOST = 2_000_000  # bytes of a request to the server under test
CLOSED = 0
BAD, GONE, TOO_LARGE, ODD = {400, CLOSED}, {404}, {413, CLOSED}, {422}
LABELS = gzip.compress(nifti((16, 16, 16), bytes(4096)))
TRAVERSAL = f"../../../../{CANARY}"


def sent(path, body, *lines):
    return lambda port: post(path, port, body, *lines)


def scanned(body, *lines):
    return sent("/predict", body, *lines)


def filed(data, filename="scan.nii.gz"):
    """What is costly to make is made when it is sent."""
    return lambda port: post("/predict", port, upload(data() if callable(data) else data, filename), FORM)


def chunked(body):
    return lambda port: head("POST /predict HTTP/1.1", port, "Transfer-Encoding: chunked") + body


def put(path, body):
    return lambda port: head(f"PUT {path} HTTP/1.1", port, f"Content-Length: {len(body)}", FORM) + body


def asked(line, *lines, host=None):
    return lambda port: head(line, port, *lines, host=host)


def raw(data):
    return lambda _: data


def labelled(params):
    said = ('Content-Disposition: form-data; name="params"', params)
    return put("/datastore/label?image=case&tag=x", form(part(LABELS, name="label"), said))


HEADS = {
    "garbage": (raw(os.urandom(4096).replace(b"\n", b"")), BAD),
    "lines of nothing": (raw(b"\r\n" * 40_000), BAD),
    "hello of TLS": (raw(bytes.fromhex("16030100a5010000a10303") + bytes(160)), BAD),
    "hello of HTTP/2": (raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), BAD),
    "HTTP/0.9": (raw(b"GET /health\r\n"), BAD),
    "HTTP/1.0 without Host": (raw(b"GET /health HTTP/1.0\r\n\r\n"), BAD),
    "no Host": (raw(b"GET /health HTTP/1.1\r\n\r\n"), BAD),
    "two Hosts": (asked("GET /health HTTP/1.1", "Host: evil.example"), BAD),
    "another Host": (asked("GET /health HTTP/1.1", host="evil.example"), BAD),
    "a name pointed here": (asked("GET /models HTTP/1.1", "Origin: http://evil.example", host="evil.example"), BAD),
    "a Host that begins well": (asked("GET /health HTTP/1.1", host="127.0.0.1.evil.example"), BAD),
    "a Host with a user": (asked("GET /health HTTP/1.1", host="127.0.0.1:80@evil.example"), BAD),
    "a Host as a user": (asked("GET /health HTTP/1.1", host="evil.example@127.0.0.1"), BAD),
    "a Host of all addresses": (asked("GET /health HTTP/1.1", host="0.0.0.0"), BAD),
    "a Host as one number": (asked("GET /health HTTP/1.1", host="2130706433"), BAD),
    "an empty Host": (asked("GET /health HTTP/1.1", host=" "), BAD),
    "a Host with a path": (asked("GET /health HTTP/1.1", host="localhost/../evil"), BAD),
    "a page from elsewhere": (asked("GET /models HTTP/1.1", "Origin: http://evil.example"), {403}),
    "a page of another port": (asked("GET /models HTTP/1.1", "Origin: http://127.0.0.1:1"), {403}),
    "a page of no origin": (asked("GET /models HTTP/1.1", "Origin: null"), {403}),
    "an origin that is none": (asked("GET /models HTTP/1.1", "Origin: http://[evil"), {403}),
    "two origins": (lambda p: head("GET /models HTTP/1.1", p, f"Origin: http://127.0.0.1:{p}", "Origin: x"), {403}),
    "a question before asking": (
        asked("OPTIONS /predict HTTP/1.1", "Origin: http://evil.example", "Access-Control-Request-Method: POST"), {403},
    ),
    "a method of its own": (asked(f"{CANARY} /health HTTP/1.1"), {405}),
    "TRACE": (asked("TRACE /health HTTP/1.1"), {405}),
    "CONNECT": (asked("CONNECT evil.example:443 HTTP/1.1"), GONE),
    "OPTIONS": (asked("OPTIONS * HTTP/1.1"), GONE),
    "an address elsewhere": (asked("GET http://evil.example/health HTTP/1.1"), GONE),
    "a web socket": (asked("GET /jobs/x/events HTTP/1.1", "Upgrade: websocket", "Sec-WebSocket-Key: x"), GONE),
    "a long address": (asked(f"GET /{'a' * 60_000} HTTP/1.1"), {400, 431, CLOSED}),
    "a long question": (asked(f"GET /models?a={'b' * 5000} HTTP/1.1"), {414}),
    "a large header": (asked("GET /health HTTP/1.1", f"X: {'a' * 60_000}"), {400, 431, CLOSED}),
    "many headers": (asked("GET /health HTTP/1.1", *(f"X{n}: y" for n in range(4000))), {400, 431, CLOSED}),
    "headers without end": (raw(b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 500_000), {400, CLOSED}),
    "a folded header": (asked("GET /health HTTP/1.1", "X: a", " Host: evil.example", "Host: b"), BAD),
    "a space before the colon": (asked("GET /health HTTP/1.1", "Content-Length : 3"), BAD),
    "a NUL in a header": (asked("GET /health HTTP/1.1", "X: a\0b"), BAD),
    "a byte that is no ASCII in the address": (asked("GET /h\xff HTTP/1.1"), BAD),
    "a length and chunks": (scanned(b"0\r\n\r\n", "Transfer-Encoding: chunked"), BAD),
    "two lengths": (asked("POST /predict HTTP/1.1", "Content-Length: 3", "Content-Length: 4"), BAD),
    "a length below nothing": (asked("POST /predict HTTP/1.1", "Content-Length: -3"), BAD),
    "a length of words": (asked("POST /predict HTTP/1.1", "Content-Length: 3 or 4"), BAD),
    "a length beyond all numbers": (asked("POST /predict HTTP/1.1", f"Content-Length: {'9' * 30}"), {400, 413, CLOSED}),
    "chunks of no size": (
        chunked(b"zz\r\nabc\r\n0\r\n\r\n"), BAD,
    ),
    "a chunk larger than it says": (
        chunked(b"2\r\nabcd\r\n0\r\n\r\n"), BAD,
    ),
    "a chunk of a huge size": (
        chunked(b"F" * 40 + b"\r\nabc"), BAD,
    ),
    "a body of crumbs": (chunked(b"1\r\na\r\n" * 300_000), BAD),
    "chunks within chunks": (asked("POST /predict HTTP/1.1", "Transfer-Encoding: chunked, chunked"), BAD),
    "another encoding of chunks": (asked("POST /predict HTTP/1.1", "Transfer-Encoding: gzip, chunked"), BAD),
    "a length that is too large": (asked("POST /predict HTTP/1.1", f"Content-Length: {MOST + 1}"), TOO_LARGE),
    "a body that is packed": (scanned(bomb(1 << 20), "Content-Encoding: gzip"), {415}),
    "a body that is packed twice": (scanned(b"x", "Content-Encoding: gzip", "Content-Encoding: br"), {415}),
    "more than it may while it comes": (
        chunked(b"10000\r\n%b\r\n" % bytes(65536) * 64),
        TOO_LARGE,
    ),
    "more than it says": (lambda p: post("/predict", p, b"abc") + b"\r\n\r\nrest" * 2000, ODD),
    "less than it says, then an end": (
        lambda p: head("POST /predict HTTP/1.1", p, "Content-Length: 500") + b"a", {CLOSED},
    ),
}  # fmt: skip

FORMS = {
    "no boundary": (scanned(upload(b"x"), "Content-Type: multipart/form-data"), {400}),
    "an empty boundary": (scanned(upload(b"x"), "Content-Type: multipart/form-data; boundary="), {400}),
    "a huge boundary": (scanned(upload(b"x"), f"Content-Type: multipart/form-data; boundary={'b' * 5000}"), {400}),
    "a boundary of another alphabet": (scanned(b"x", "Content-Type: multipart/form-data; boundary*=utf-8''%ff"), {400}),
    "another boundary": (scanned(upload(b"x"), "Content-Type: multipart/form-data; boundary=c"), {400}),
    "thousands of parts": (scanned(form(*[part(b"x", name=str(n)) for n in range(5000)]), FORM), {413}),
    "thousands of slices": (scanned(form(*[part(b"x")] * 5000), FORM), {413}),
    "thousands of fields": (scanned(form(*[("Content-Disposition: form-data; name=a", b"x")] * 5000), FORM), {413}),
    "no end": (scanned(form(part(b"x"), end=False), FORM), {400}),
    "no part": (scanned(b"--b--\r\n", FORM), {400}),
    "a form within a form": (
        scanned(
            form(("Content-Disposition: form-data; name=a\r\nContent-Type: multipart/mixed; boundary=c", upload(b"x"))),
            FORM,
        ),
        {400},
    ),
    "a part without a name": (scanned(form(("Content-Disposition: form-data", b"x")), FORM), {400}),
    "a part without a head": (scanned(b"--b\r\n\r\nx\r\n--b--\r\n", FORM), {400}),
    "a name of a thousand letters": (scanned(upload(b"x", name="a" * 1000), FORM), {400}),
    "two scans": (scanned(form(part(b"x"), part(b"y", name="other")), FORM), {400}),
    "a huge field": (scanned(form(("Content-Disposition: form-data; name=params", bytes(1_500_000))), FORM), {413}),
    "many large fields": (
        scanned(form(*[(f"Content-Disposition: form-data; name=a{n}", bytes(60_000)) for n in range(30)]), FORM), {413},
    ),
    "a part with a large head": (scanned(form((f"X: {'a' * 100_000}", b"x")), FORM), {400, 413}),
    "a part with many heads": (
        scanned(form(("\r\n".join(f"X{n}: {'a' * 50}" for n in range(20_000)), b"x")), FORM), {400, 413},
    ),
    "names that are no UTF-8": (scanned(upload(b"x", filename="\udcff\udc80.dcm", name="\udcff"), FORM), ODD),
    "a form that is none": (scanned(os.urandom(50_000), FORM), {400}),
    "a web form": (scanned(b"file=a&model=b", "Content-Type: application/x-www-form-urlencoded"), ODD),
    "a type that is none": (scanned(b"x", "Content-Type: ;;;\xff;=\"'"), ODD),
    "nothing at all": (scanned(b""), {400}),
}  # fmt: skip

FILES = {
    "zeros packed as gzip": (filed(lambda: gzip.compress(nifti((4000, 4000, 4000), bytes(32 << 20)), 9)), {413}),
    "more zeros than declared": (filed(lambda: gzip.compress(nifti((16, 16, 16), bytes(96 << 20)), 9)), ODD),
    "gzip within gzip": (filed(lambda: gzip.compress(bomb(64 << 20))), ODD),
    "a header of 32767 cubed": (filed(nifti((32767,) * 3, b"")), {413}),
    "a header of minus one cubed": (filed(nifti((65535,) * 3, b"")), ODD),
    "a second header of 65535 cubed": (filed(nifti2((65535,) * 3)), {413}),
    "a second header beyond all numbers": (filed(nifti2((1 << 62,) * 3)), {413, 422}),
    "seven axes": (filed(nifti((99,) * 7, b"")), {413, 422}),
    "NRRD of 65535 cubed": (filed(nrrd("65535 65535 65535", bomb(1 << 20)), "a.nrrd"), {413}),
    "NRRD packed too well": (filed(nrrd("200 200 200", bomb(8_000_000)), "a.nrrd"), {413}),
    "NRRD of another file": (filed(nrrd("4 4 4", b"", encoding="raw", more="data file: /etc/passwd\n"), "a.nrrd"), ODD),
    "NRRD of a list": (filed(nrrd("4 4 4", b"", encoding="raw", more="data file: LIST\n/etc/passwd\n"), "a.nrrd"), ODD),
    "MetaImage of another file": (
        filed(
            b"ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\nElementDataFile = /etc/passwd\n",
            "a.mha",
        ),
        ODD,
    ),
    "DICOM that inflates": (filed(lambda: dicom(deflated=True, body=deflated_zeros(64 << 20)), "a.dcm"), {413, 422}),
    "DICOM of 65535 squared": (filed(lambda: dicom(Rows=65535, Columns=65535), "a.dcm"), {413, 422}),
    "DICOM of names": (filed(lambda: dicom(Rows=0), f"{CANARY}.dcm"), ODD),
    "DICOM of UIDs that are none": (
        lambda p: post("/predict?format=dicom-seg", p, dicom().replace(b"1.2.3.4\0", b"1.2.\xff4\0")), {200, 422},
    ),
    "a TIFF of no size": (filed(b"II*\0\x08\0\0\0\0\0\0\0\0\0", "a.tiff"), ODD),
    "a TIFF that goes round": (filed(b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "a.tiff"), ODD),
    "a zip archive of zeros": (filed(lambda: packed({"a.dcm": bytes(64 << 20)})), {413}),
    "a zip archive of 40 thousand files": (filed(directory_of(40_000)), ODD),
    "a zip archive of a bomb": (filed(packed({"a.zip": packed({"b": bytes(8 << 20)})})), ODD),
    "a zip archive of overlaps": (filed(overlapping()), {413, 422}),
    "a zip archive with a secret": (filed(encrypted()), ODD),
    "a zip archive of two of one name": (filed(packed({"a": b"x"})[:-22] + packed({"a": b"x"})), ODD),
    "a zip archive of a link": (filed(linked("/etc/passwd")), ODD),
    "a zip archive of ways out": (filed(lambda: packed({TRAVERSAL: dicom()[:600], f"/tmp/{CANARY}": b"x"})), ODD),
    "a DICOMDIR of ways out": (
        filed(lambda: packed({"DICOMDIR": dicom(ReferencedFileID=["AA", "BB"])[:700].replace(b"AA\\BB", b"..\\..")})),
        ODD,
    ),
    "a pickle": (filed(b"\x80\x04cposix\nsystem\n(S'touch /tmp/canary'\ntR."), ODD),
    "a model of torch": (filed(packed({"a/data.pkl": b"\x80\x02cposix\nsystem\n", "a/version": b"3"})), ODD),
    "a model of ours": (filed(b"\x40\0\0\0\0\0\0\0" + b'{"medseg":{}}'.ljust(64)), ODD),
    "a PDF": (filed(b"%PDF-1.7\n" + bytes(999), f"{CANARY}.pdf"), ODD),
    "an SVG": (filed(b"<svg><image href='file:///etc/passwd'/></svg>", "a.png"), ODD),
    "an XML of entities": (filed(b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>"), ODD),
    "a program": (filed(b"\x7fELF" + bytes(500)), ODD),
    "an empty file": (filed(b""), ODD),
    "half a scan": (filed(gzip.compress(nifti((16,) * 3, bytes(4096)))[:-30]), ODD),
}  # fmt: skip

WORDS = {
    "a parameter that is not known": (sent(f"/predict?{CANARY}=1", b"x"), {400}),
    "a value that is wrong": (sent(f"/predict?wait={CANARY}", b"x"), {400}),
    "a model that is not known": (sent(f"/predict?model={CANARY}", b"x"), GONE),
    "a model by its path": (sent("/predict?model=..%2ftiny.safetensors", b"x"), GONE),
    "a model elsewhere": (sent("/predict?model=http://evil.example/m", b"x"), GONE),
    "a format that is not known": (sent(f"/predict?format={CANARY}", b"x"), {400}),
    "a volume of many digits": (sent(f"/predict?volume={'9' * 4000}", b"x"), {400}),
    "bytes that are no UTF-8": (sent("/predict?model=%ff%00%ed%a0%80", b"x"), GONE),
    "a job that is not known": (asked(f"GET /jobs/{CANARY} HTTP/1.1"), GONE),
    "a job by a way out": (asked("GET /jobs/..%2f..%2fuploads/results/nifti HTTP/1.1"), GONE),
    "dots as such": (asked("GET /../../../../etc/passwd HTTP/1.1"), GONE),
    "dots in disguise": (asked("GET /page/%2e%2e%2f%2e%2e%2fsettings.py HTTP/1.1"), GONE),
    "dots in double disguise": (asked("GET /page/%252e%252e%252fsettings.py HTTP/1.1"), GONE),
    "dots the other way": (asked("GET /page/..%5c..%5csettings.py HTTP/1.1"), GONE),
    "a NUL in a path": (asked("GET /page/index.html%00.png HTTP/1.1"), GONE),
    "a session by a way out": (asked(f"GET /session/..%2f{CANARY} HTTP/1.1"), GONE),
    "a session to drop by a way out": (asked("DELETE /session/..%2f..%2fstore HTTP/1.1"), GONE),
    "a scan by a way out": (asked("GET /datastore/image?image=../../../etc/passwd HTTP/1.1"), GONE),
    "a scan by its path": (asked("GET /datastore/image?image=%2fetc%2fpasswd%00 HTTP/1.1"), GONE),
    "a label by a way out": (asked("GET /datastore/label?label=case&tag=../../ HTTP/1.1"), GONE),
    "a tag that is a way out": (
        put(f"/datastore/label?image=case&tag=..%2f..%2f{CANARY}", upload(LABELS, name="label")), {400},
    ),
    "a label for a way out": (
        put(f"/datastore/label?image=..%2f{CANARY}", upload(LABELS, name="label")), {404, 422},
    ),
    "a scan of the server's": (sent("/infer/tiny?image=%2fetc%2fpasswd", form(), FORM), {400, 404}),
    "a session of nobody": (sent(f"/infer/tiny?session_id={CANARY}", b"--b--\r\n", FORM), {400, 404}),
    "params that lie deep": (labelled(b"[" * 200_000), {400}),
    "params less deep": (labelled(b'{"a":' + b"[" * 900 + b"]" * 900 + b"}"), {400}),
    "params that are no number": (labelled(b'{"a": NaN}'), {400}),
    "params beyond all numbers": (labelled(b'{"a": 1e999}'), {400}),
    "params of many digits": (labelled(b'{"a": ' + b"9" * 500_000 + b"}"), {400}),
    "params of half a letter": (labelled(b'{"a": "\\ud800"}'), {400}),
    "something to train": (sent(f"/train/{CANARY}", b"{}"), GONE),
    "a password of many letters": (sent("/auth/token", b"password=" + b"a" * 10_000), {413}),
}  # fmt: skip

ROWS = {
    f"{kind}: {name}": row
    for kind, rows in {"head": HEADS, "form": FORMS, "file": FILES, "words": WORDS}.items()
    for name, row in rows.items()
}
