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
# # Receiving
# > Images that arrive over the network are on the disk before their arrival is confirmed.
#
# A modality or an archive sends an image by C-STORE, and may delete its own copy once the receiver has confirmed it. So
# the confirmation comes after the file is whole, synced and under its final name. A receiver that is killed at any
# moment so loses nothing that it has confirmed, and the sender repeats the rest.
#
# The protocol has no passwords. An AE title is a name that anybody can claim, so the receiver listens on this machine
# only, unless another address is named, and refuses titles and addresses that it was not told.

# %%
#| default_exp receiving

# %%
#| export
import hashlib
import os
import shutil
import threading
import uuid
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path

from mammo_nb.core.errors import ProjectError
from mammo_nb.core.files import StorageError, make_folder, replacing, short_hash
from mammo_nb.watching import exam_name

# %%
#| hide
import tempfile
from copy import deepcopy

from pydicom import examples

# %% tags=["parameters"]
largest = 1 << 20   # bytes of an image that the example accepts

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
# ## An inbox
# Names of files are digests of UIDs, so they are harmless and name nobody. The same image again is confirmed and not
# stored twice. Another image under the same UID is refused: a result may exist for the first one.

# %%
#| export
# statuses of C-STORE (PS3.4 B.2.3) and failure reasons of STOW-RS (PS3.18 I.2.2)
SUCCESS, DUPLICATE, NO_ROOM, MISMATCH, DAMAGED = 0x0000, 0x0111, 0xA700, 0xA900, 0xC000

class Refused(ProjectError):
    "An image that is not accepted. Its text has no value of a header."
    def __init__(self, problem: str, status: int):
        super().__init__(problem)
        self.status = status

class MissingPackage(ProjectError):
    "A package that serving needs and that is not installed."

@dataclass(frozen=True)
class Kept:
    "An image that is on the disk."
    study: str      # Study Instance UID
    sop_class: str
    instance: str   # SOP Instance UID
    new: bool       # False: it was there before

# transfer syntaxes in which a few bytes become gigabytes
_DEFLATED = ("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.8.1")
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "PixelDataProviderURL")

def read_uids(
    path: Path,          # a DICOM file that somebody has sent
) -> tuple[str, str, str]:  # Study Instance UID, SOP Class UID, SOP Instance UID
    "Check that a file is a whole DICOM file, and read its UIDs. Raises Refused."
    from pydicom import Dataset
    from pydicom.dataelem import RawDataElement
    from pydicom.filereader import data_element_generator, read_file_meta_info
    from pydicom.uid import UID
    elements, size = {}, path.stat().st_size
    try:
        meta = read_file_meta_info(path)
        syntax = UID(meta.TransferSyntaxUID)
        if syntax in _DEFLATED or not syntax.is_transfer_syntax:
            raise Refused("its transfer syntax is not accepted", DAMAGED)
        with open(path, "rb") as file:
            file.seek(144 + meta.FileMetaInformationGroupLength)
            for element in data_element_generator(file, syntax.is_implicit_VR, syntax.is_little_endian,
                                                  defer_size=1 << 16):
                if isinstance(element, RawDataElement) and element.length != 0xFFFFFFFF and (
                        element.value_tell + element.length > size):
                    raise Refused("the file ends within a value", DAMAGED)
                elements[element.tag] = element
            left = size - file.tell()
        uids = Dataset(elements)
        found = [str(uids.get(name) or "") for name in ("StudyInstanceUID", "SOPClassUID", "SOPInstanceUID")]
        whole = "Rows" not in uids or any(name in uids for name in _PIXELS)
    except Refused:
        raise
    except Exception as e:   # what pydicom raises for damaged bytes has nothing in common
        raise Refused(f"no DICOM file that can be read ({type(e).__name__})", DAMAGED) from None
    if left or not whole:
        raise Refused("the file is cut off", DAMAGED)
    if not all(uid and UID(uid).is_valid for uid in found):
        raise Refused("a UID of study, class or instance is absent or invalid", DAMAGED)
    if meta.get("MediaStorageSOPInstanceUID", found[2]) != found[2]:
        raise Refused("its two SOP Instance UIDs differ", MISMATCH)
    return tuple(found)

def content_of(
    path: Path,   # a DICOM file
) -> str:         # 64 hexadecimal digits
    "SHA-256 of the data set, without the file's own header, which depends on who has written it."
    from pydicom.filereader import read_file_meta_info
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(144 + read_file_meta_info(path).FileMetaInformationGroupLength)   # preamble, mark, group length
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

class Inbox:
    "A folder with a folder for each study."
    def __init__(self,
        folder: Path,
        largest: int,   # bytes of an image
    ):
        self.folder, self.largest = Path(folder), largest
        self.parts, self.lock = self.folder / ".parts", threading.Lock()
        shutil.rmtree(self.parts, ignore_errors=True)   # of a receiver that was killed; nobody was told of them
        make_folder(self.parts)

    def part(self) -> Path:
        "A new name for what is not whole yet, on the disk of the folder."
        return self.parts / uuid.uuid4().hex

    def keep(self,
        part: Path,           # a DICOM file below `parts`; it is gone afterwards
        study: str = "",      # what the sender calls it; "": not said
        sop_class: str = "",
        instance: str = "",
    ) -> Kept:
        "Return when an image is on the disk. Raises Refused, and StorageError for a full disk."
        try:
            if part.stat().st_size > self.largest:
                raise Refused(f"larger than {self.largest} bytes", NO_ROOM)
            found = read_uids(part)
            if any(said and said != uid for said, uid in zip((study, sop_class, instance), found)):
                raise Refused("it has other UIDs than the request", MISMATCH)
            path = self.folder / exam_name(found[0]) / f"{short_hash(found[2])}.dcm"
            with self.lock:   # two senders may send the same image
                if path.is_file():
                    if content_of(path) != content_of(part):
                        raise Refused("another image with this SOP Instance UID is here", DUPLICATE)
                    return Kept(*found, new=False)
                with replacing(path) as temporary:
                    os.replace(part, temporary)
            return Kept(*found, new=True)
        finally:
            part.unlink(missing_ok=True)

# %%
box = Path(tempfile.mkdtemp())
uids = {"StudyInstanceUID": "1.2.3", "SOPInstanceUID": "1.2.3.4"}
sent = make_dicom(box / "sent.dcm", **uids)
inbox, whole = Inbox(box / "in", largest), sent.read_bytes()

def send(data, **said):
    part = inbox.part()
    part.write_bytes(data)
    return inbox.keep(part, **said)

assert send(whole).new and not send(whole).new
for data, said in ((whole[:-2], {}), (b"no DICOM", {}), (whole, {"study": "1.9"}), (whole[:-1] + b"x", {}),
                   (whole + bytes(largest), {})):
    try:
        send(data, **said)
    except Refused as e:
        print(f"{e.status:04X} {e}")
    else:
        raise AssertionError
assert len(list((box / "in").rglob("*.dcm"))) == 1 and not list(inbox.parts.iterdir())

# %% [markdown]
# ## An upload
# An HTTP request has several images. It goes to the disk while it arrives, and each image is stored as soon as it is
# whole. So the memory does not depend on the size, and a request that exceeds a limit ends early.

# %%
#| export
class TooLarge(Exception):
    "An upload beyond a limit."

class Upload:
    "The images in the body of a request, as files."
    def __init__(self,
        inbox: Inbox,
        boundary: bytes,   # between the parts
        most: int,         # bytes of the body
    ):
        from python_multipart.multipart import MultipartParser
        self.inbox, self.most, self.size, self.file, self.whole, self.ended = inbox, most, 0, None, [], False
        self.parser = MultipartParser(boundary, {
            "on_part_begin": self._begin, "on_part_data": self._data, "on_part_end": self._end,
            "on_end": self._finish})

    def _begin(self):
        self.path, self.bytes = self.inbox.part(), 0
        self.file = open(self.path, "wb")

    def _data(self, data: bytes, start: int, end: int):
        self.bytes += end - start
        if self.bytes > self.inbox.largest:
            raise TooLarge
        self.file.write(data[start:end])

    def _end(self):
        self.file.close()
        self.whole.append(self.path)

    def _finish(self):
        self.ended = True

    def take(self,
        chunk: bytes,   # of the body
    ) -> list[Path]:    # images that are whole now
        "Raises TooLarge, and python_multipart's MultipartParseError."
        self.size += len(chunk)
        if self.size > self.most:
            raise TooLarge
        self.parser.write(chunk)
        whole, self.whole = self.whole, []
        return whole

    def close(self):
        "Remove what is left of an upload that broke off."
        if self.file:
            self.file.close()
            for path in (*self.whole, self.path):
                path.unlink(missing_ok=True)

# %% [markdown]
# ## Who may send

# %%
#| export
LOOPBACK = ("127.0.0.0/8", "::1/128")

def allowed_from(
    networks: list[str],   # such as 10.1.2.0/24 or 10.1.2.3
):                         # address -> whether it is in one of them
    "Raises ValueError for a text that is no network."
    known = [ip_network(n) for n in networks]

    def allowed(address: str) -> bool:
        try:
            return any(ip_address(address) in n for n in known)
        except ValueError:
            return False
    return allowed

# %%
assert allowed_from(LOOPBACK)("127.0.0.1") and not allowed_from(LOOPBACK)("10.0.0.1")

# %% [markdown]
# ## The DICOM receiver
# It answers C-ECHO and C-STORE. The bytes of an image are counted while they arrive, and a sender that exceeds the
# limit is cut off, so that nobody can fill memory or disk with one image. pynetdicom writes them to a temporary file.

# %%
#| export
def _limit_bytes(largest: int):
    "A handler that aborts an association whose image is too large."
    received = {}

    def count(event):
        for item in getattr(event.pdu, "presentation_data_value_items", ()):
            control = item.presentation_data_value[0]
            if control & 1:   # of a command
                continue
            size = received.get(event.assoc, 0) + len(item.presentation_data_value)
            received[event.assoc] = 0 if control & 2 else size   # the last fragment
            if size > largest + (1 << 16):
                event.assoc.abort()

    def forget(event):
        received.pop(event.assoc, None)
    return count, forget

def start_receiver(
    inbox: Inbox,
    title: str,           # own AE title
    callers: list[str],   # AE titles that may call
    address: tuple[str, int],   # host and port; 0: any free one
    allowed,              # address -> whether it may connect
    tell=print,           # gets a line for each image that is refused
):                        # the server: `shutdown()`, and `server_address`
    "Start a DICOM storage SCP in threads. Raises MissingPackage."
    try:
        from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, _config, evt
        from pynetdicom.sop_class import Verification
    except ImportError:
        raise MissingPackage("Receiving DICOM needs pynetdicom, which is not installed: pip install "
                             "'mammo_nb[clinic]'.") from None
    _config.STORE_RECV_CHUNKED_DATASET = True   # an image goes to a file, not to memory
    ae = AE(ae_title=title)
    ae.require_called_aet, ae.require_calling_aet = True, callers
    ae.maximum_associations, ae.network_timeout, ae.dimse_timeout, ae.acse_timeout = 16, 60, 60, 30
    ae.add_supported_context(Verification)
    for context in AllStoragePresentationContexts:
        ae.add_supported_context(context.abstract_syntax, [s for s in ALL_TRANSFER_SYNTAXES if s not in _DEFLATED])

    def on_request(event):
        if not allowed(event.assoc.requestor.address):
            event.assoc.acse.send_reject(0x01, 0x01, 0x01)

    def on_store(event) -> int:
        part = inbox.part()
        try:
            shutil.copyfile(event.dataset_path, part)
            inbox.keep(part, "", event.request.AffectedSOPClassUID, event.request.AffectedSOPInstanceUID)
            return SUCCESS
        except Refused as e:
            tell(f"an image was refused: {e}")
            return e.status
        except (StorageError, OSError) as e:
            tell(f"an image cannot be stored: {type(e).__name__}")
            return NO_ROOM

    count, forget = _limit_bytes(inbox.largest)
    return ae.start_server(address, block=False, evt_handlers=[
        (evt.EVT_REQUESTED, on_request), (evt.EVT_C_STORE, on_store), (evt.EVT_PDU_RECV, count),
        (evt.EVT_CONN_CLOSE, forget), (evt.EVT_C_ECHO, lambda event: SUCCESS)])

# %% [markdown]
# ## What came out
# A receiver and a sender on this machine. The same image from an unknown caller is refused.

# %%
from pydicom import dcmread
from pynetdicom import AE

server = start_receiver(inbox, "MAMMO_NB", ["UNIT"], ("127.0.0.1", 0), allowed_from(LOOPBACK))
image = dcmread(sent)
image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = "1.2.3.5"
statuses = []
for caller in ("UNIT", "STRANGER"):
    sender = AE(ae_title=caller)
    sender.add_requested_context(image.SOPClassUID, image.file_meta.TransferSyntaxUID)
    association = sender.associate(*server.server_address, ae_title="MAMMO_NB")
    if association.is_established:
        statuses.append(association.send_c_store(image).Status)
        association.release()
server.shutdown()
assert statuses == [SUCCESS] and len(list((box / "in").rglob("*.dcm"))) == 2

# %% [markdown]
# ---
# [← Watching](82_watching.py) · [Serving →](84_serving.py)
