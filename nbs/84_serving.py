# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Serving
# > Exams arrive by DICOM or HTTP, each is predicted once, and its results are files of its study.
#
# `mammo-nb serve` joins what stands before it: [an inbox](83_receiving.py) that confirms an image when it is on the
# disk, and [a watch](82_watching.py) over that folder. The folder is the queue. Whatever ends the server, the same
# command continues with what is there.
#
# Here is the HTTP side, as DICOMweb describes it (STOW-RS, PS3.18 10.5). It wants a token with each request.

# %%
#| default_exp serving

# %%
#| export
import re
import socket
import threading
from contextlib import suppress
from pathlib import Path

import typer

# %%
#| hide
import tempfile
from copy import deepcopy

from pydicom import examples

# %% tags=["parameters"]
token = "example"   # of the requests below

# %%
#| hide
def make_dicom(path, shade=0, **tags):
    "An example of pydicom with other tags."
    ds = deepcopy(examples.ct)
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.PixelData = bytes([shade]) + ds.PixelData[1:]
    ds.save_as(path)
    return path

# %% [markdown]
# ## The answers
# A request that does not come from an allowed address gets 403, one without the token 401, before its body is read.

# %%
#| export
class Guard:
    "ASGI middleware: refuses other addresses and requests without the token."
    def __init__(self, app, token: str, allowed):
        self.app, self.token, self.allowed = app, token.encode(), allowed

    async def __call__(self, scope, receive, send):
        from hmac import compare_digest
        from starlette.responses import JSONResponse
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not self.allowed((scope.get("client") or ("", 0))[0]):
            answer = JSONResponse({"error": "this address is not allowed"}, 403)
        elif not compare_digest(given, b"Bearer " + self.token):
            answer = JSONResponse({"error": "no valid token"}, 401, {"WWW-Authenticate": "Bearer"})
        else:
            return await self.app(scope, receive, send)
        await answer(scope, receive, send)

def stored_answer(
    kept: list,           # `receiving.Kept`
    refused: list[int],   # failure reasons
) -> tuple[int, dict]:    # status, and the dataset of PS3.18 10.5.3 as DICOM JSON
    "The answer to an upload."
    def uids(one):
        return {"00081150": {"vr": "UI", "Value": [one.sop_class]}, "00081155": {"vr": "UI", "Value": [one.instance]}}
    answer = {}
    if kept:
        answer["00081199"] = {"vr": "SQ", "Value": [uids(k) for k in kept]}
    if refused:
        answer["00081198"] = {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [r]}} for r in refused]}
    return (200 if not refused else 202 if kept else 409), answer

STUDY, RESULT = re.compile(r"[0-9.]{1,64}"), re.compile(r"[\w.@~-]+\.dcm")
IDLE = 60   # seconds without a byte after which an upload is given up
LINGER = 30   # seconds for which the rest of a refused upload is read

def exam_state(
    received: Path,   # folder of the images of an exam
    results: Path,    # folder of its results
) -> dict:            # state: received, predicted or failed; files; record: of the prediction
    "What has become of an exam."
    from mammo_nb.watching import finished
    files, record = len(list(received.glob("*.dcm"))), finished(results)
    state = "received"
    if record and record["files"] == files:
        state = "failed" if record["exit_code"] == 2 else "predicted"
    kept = {k: record[k] for k in ("counts", "errors", "failure", "seconds", "note", "computed") if k in record}
    return {"exam": received.name, "state": state, "files": files, **({"record": kept} if state != "received" else {})}

def make_app(
    inbox,           # `receiving.Inbox`
    results: Path,   # folder with a folder for each exam
    token: str,
    allowed,         # address -> whether it may connect
    most: int,       # bytes of a request
):                   # ASGI application
    "The HTTP interface."
    import asyncio
    from fastapi import FastAPI, Request
    from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import parse_options_header
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import ClientDisconnect
    from mammo_nb.core.files import StorageError, read_json
    from mammo_nb.receiving import NO_ROOM, Refused, TooLarge, Upload
    from mammo_nb.watching import exam_name
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)   # their pages load scripts from elsewhere

    def failure(status: int, words: str):
        return JSONResponse({"error": words}, status)

    def keep(path: Path, study: str, kept: list, refused: list):
        try:
            kept.append(inbox.keep(path, study))
        except Refused as e:
            refused.append(e.status)
        except (StorageError, OSError):
            refused.append(NO_ROOM)

    @app.post("/studies")
    @app.post("/studies/{study}")
    async def store(request: Request, study: str = ""):
        "STOW-RS."
        chunks = aiter(request.stream())
        answer = await take(request, study, chunks)
        # many senders look for an answer only after their last byte
        with suppress(asyncio.TimeoutError, ClientDisconnect):
            await asyncio.wait_for(read_rest(chunks), LINGER)
        return answer

    async def read_rest(chunks):
        "Read an upload to its end."
        async for _ in chunks:
            pass

    async def take(request: Request, study: str, chunks) -> JSONResponse:
        "Keep the images of an upload, whose bytes are `chunks`."
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        if kind != b"multipart/related" or options.get(b"type") != b"application/dicom" or not options.get(b"boundary"):
            return failure(415, "send multipart/related; type=\"application/dicom\"; boundary=...")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            return failure(413, f"a request has at most {most} bytes")
        kept, refused, upload = [], [], None
        try:
            upload = Upload(inbox, options[b"boundary"], most)
            while chunk := await asyncio.wait_for(anext(chunks, b""), IDLE):
                for path in upload.take(chunk):
                    await run_in_threadpool(keep, path, study, kept, refused)
        except TooLarge:
            return failure(413, f"an image has at most {inbox.largest} bytes, and a request {most}")
        except FormParserError:
            return failure(400, "the body is not multipart/related")
        except asyncio.TimeoutError:
            return failure(408, f"nothing arrived for {IDLE} seconds")
        except OSError:
            return failure(507, "the disk takes no more files")
        finally:
            if upload:
                upload.close()
        if not upload.ended or not (kept or refused):
            return failure(400, "the body is cut off or has no image")
        status, answer = stored_answer(kept, refused)
        if NO_ROOM in refused and not kept:
            status = 507
        return JSONResponse(answer, status, media_type="application/dicom+json")

    def places(study: str):
        "Folders of an exam; None if there is none."
        name = exam_name(study)
        known = STUDY.fullmatch(study) and (inbox.folder / name).is_dir()
        return (inbox.folder / name, results / name) if known else None

    @app.get("/exams")
    def exams():
        "All exams."
        return [exam_state(f, results / f.name) for f in sorted(inbox.folder.glob("[!.]*"))]

    @app.get("/studies/{study}/result")
    def result(study: str):
        "The result of a study: 200, or 202 while there is none yet."
        if not (at := places(study)):
            return failure(404, "no such study")
        state = exam_state(*at)
        found = at[1] / "result.json"
        shown = state["state"] != "received" and found.is_file()
        files = sorted(p.name for p in (at[1] / "dicom").glob("*.dcm")) if shown else []
        answer = {"study": study, **state, "dicom": files, "exams": read_json(found) if shown else []}
        return JSONResponse(answer, 202 if state["state"] == "received" else 200, {"Cache-Control": "no-store"})

    @app.get("/studies/{study}/result/page")
    def page(study: str):
        "The page of a study."
        at = places(study)
        pages = sorted(p for p in (at[1] / "html").glob("*.html") if p.stem != "index") if at else []
        if not pages:
            return failure(404, "no such study, or no result yet")
        return HTMLResponse(pages[0].read_text(), headers={"Cache-Control": "no-store"})

    @app.get("/studies/{study}/result/dicom/{name}")
    def dicom(study: str, name: str):
        "A picture or a report, as DICOM."
        at = places(study)
        if not at or not RESULT.fullmatch(name) or not (at[1] / "dicom" / name).is_file():
            return failure(404, "no such result")
        return FileResponse(at[1] / "dicom" / name, media_type="application/dicom")

    return Guard(app, token, allowed)

# %% [markdown]
# ## The server

# %%
#| export
def start_http(
    app,
    address: tuple[str, int],   # host and port; 0: any free one
):                              # the server, its thread, and its address
    "Serve HTTP in a thread."
    import uvicorn
    listening = socket.create_server(address)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False, limit_concurrency=32,
                                           timeout_keep_alive=5, server_header=False))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True, name="http")
    thread.start()
    return server, thread, listening.getsockname()[:2]

def need_packages():
    "Raise MissingPackage for a package that serving needs."
    from importlib.util import find_spec
    from mammo_nb.receiving import MissingPackage
    needed = "pynetdicom", "highdicom", "fastapi", "uvicorn", "python_multipart"
    if missing := [name for name in needed if not find_spec(name)]:
        raise MissingPackage(f"mammo-nb serve needs {', '.join(missing)}: pip install 'mammo_nb[clinic]'.")

MB = 1_000_000

app = typer.Typer(add_completion=False)

@app.command()
def serve(
    output: Path = typer.Option(..., "--output", "-o", help="received/ and results/ go here; a restart continues it"),
    weights: Path = typer.Option(None, help="folder of weights; default: assets/trained, then the newest run"),
    allow: list[str] = typer.Option([], help="AE title that may send by C-STORE; may be repeated; none: no DICOM port"),
    token: str = typer.Option(
        "", envvar="MAMMO_NB_TOKEN", help="of HTTP requests, at least 16 characters; better in the variable, since "
        "every user sees the options of a process; none: no HTTP port"),
    title: str = typer.Option("MAMMO_NB", help="own AE title"),
    host: str = typer.Option("127.0.0.1", help="address to listen on"),
    sender: list[str] = typer.Option(
        ["127.0.0.0/8", "::1"], "--from", help="addresses or networks that may connect; may be repeated"),
    port: int = typer.Option(11112, help="of DICOM; 0: any free one"),
    http_port: int = typer.Option(8042, help="of HTTP; 0: any free one"),
    wait: float = typer.Option(60.0, min=0, help="seconds without a new image that complete an exam"),
    largest: int = typer.Option(500, min=1, help="MB of an image, at most"),
    most: int = typer.Option(2000, min=1, help="MB of an HTTP request, at most"),
    workers: int = typer.Option(1, min=1, help="exams that are predicted at once"),
    engine: str = typer.Option("auto", help="as for predict"),
    device: str = typer.Option("cpu", help="as for predict"),
    system: str = typer.Option("", help="the system, see `mammo-nb systems`; default: see there"),
):
    "Receive exams by DICOM (C-STORE) and DICOMweb (STOW-RS), predict each once, and keep its results. Ctrl-C ends it."
    import warnings
    from mammo_nb.predicting import tool_of, unknown_options
    if not allow and not token:
        raise typer.BadParameter("name an AE title with --allow, or a token in the variable MAMMO_NB_TOKEN, or both")
    if token and (len(token) < 16 or not token.isascii()):
        raise typer.BadParameter("a token has at least 16 characters of ASCII, such as openssl rand -hex 16 makes them")
    if unknown_options(tool_of(system), {"dicom": True, "html": True}):
        raise typer.BadParameter("this system has no results as DICOM")
    need_packages()
    warnings.simplefilter("ignore")   # a library may print the value of a header
    from mammo_nb.core.files import owner
    from mammo_nb.core.submission import NOT_A_DEVICE
    from mammo_nb.receiving import Inbox, allowed_from, start_receiver
    from mammo_nb.watching import watch
    try:
        allowed = allowed_from(sender)
    except ValueError as e:
        raise typer.BadParameter(f"--from: {e}") from None

    def tell(line, record=None):
        print(line, flush=True)

    with owner(output):
        inbox, running, thread = Inbox(output / "received", largest * MB), [], None
        try:
            if allow:
                running.append(start_receiver(inbox, title, allow, (host, port), allowed, tell))
                tell("DICOM: {}@{}:{}".format(title, *running[0].server_address[:2]))
            if token:
                web = make_app(inbox, output / "results", token, allowed, most * MB)
                _, thread, address = start_http(web, (host, http_port))
                tell("HTTP: http://{}:{}".format(*address))
            tell(f"results -> {output / 'results'}; {NOT_A_DEVICE}. Ctrl-C ends, the same command continues.")
            watch(inbox.folder, output / "results", system, wait, workers, tell=tell,
                  until=lambda: thread is not None and not thread.is_alive(), weights=weights, dicom=True, html=True,
                  engine=engine, device=device)
        except KeyboardInterrupt:
            tell("ended")
            return
        finally:
            for server in running:
                server.shutdown()
    tell("the HTTP server has ended")
    raise typer.Exit(2)

# %% [markdown]
# ## What came out
# An upload of one image and a damaged one, asked for by a client on this machine. Its result does not exist yet.

# %%
from starlette.testclient import TestClient

from mammo_nb import receiving

box = Path(tempfile.mkdtemp())
image = make_dicom(box / "a.dcm", StudyInstanceUID="1.2.3", SOPInstanceUID="1.2.3.4")
web = make_app(receiving.Inbox(box / "in", 1 << 20), box / "out", token, lambda address: True, 1 << 21)
client = TestClient(web, headers={"Authorization": f"Bearer {token}"})
body = b"".join(b"--x\r\nContent-Type: application/dicom\r\n\r\n" + data + b"\r\n"
                for data in (image.read_bytes(), b"no image")) + b"--x--\r\n"
answer = client.post("/studies", content=body,
                     headers={"Content-Type": 'multipart/related; type="application/dicom"; boundary=x'})
assert answer.status_code == 202 and TestClient(web).get("/exams").status_code == 401
assert client.get("/studies/1.2.3/result").status_code == 202 and client.get("/studies/1.9/result").status_code == 404
answer.json()

# %% [markdown]
# ---
# [← Receiving](83_receiving.py) · [From Python →](85_python.py)
