"""What `make install` looks at first: Python, its venv module, free disk, and the system libraries of OpenCV's wheel.

    python3 .ci/ready.py FOLDER    # of the environment; ends with 1 and says what to do if something is missing

It runs before anything is installed, so it has the standard library only, and no syntax that an old Python refuses.
"""
import ctypes
import importlib
import os
import shutil
import sys
import tempfile

GIGABYTES = 8
DOWNLOADS = 3  # which pip keeps in the temporary folder until all is installed
LIBRARIES = ("libGL.so.1", "libgthread-2.0.so.0")
COMMANDS = (  # names in ID or ID_LIKE of /etc/os-release -> command for the libraries, command for venv
    (("debian", "ubuntu"), "apt-get install libgl1 libglib2.0-0", "apt-get install python{0}.{1}-venv"),
    (("fedora", "rhel", "centos"), "dnf install mesa-libGL glib2", "dnf install python{0}.{1}"),
    (("suse", "opensuse"), "zypper install Mesa-libGL1 libgthread-2_0-0", "zypper install python{0}{1}"),
    (("arch",), "pacman -S libglvnd glib2", "pacman -S python"),
)


def distribution(path="/etc/os-release"):
    "Names of this Linux: its own, and those of what it is derived from."
    try:
        with open(path) as f:
            lines = [line.strip().split("=", 1) for line in f if "=" in line]
    except OSError:
        return []
    values = dict((key, value.strip('"')) for key, value in lines)
    return (values.get("ID", "") + " " + values.get("ID_LIKE", "")).split()


def commands(names):
    "The commands of a distribution, for libraries and for venv; None where it is unknown."
    for known, libraries, venv in COMMANDS:
        if set(known) & set(names):
            return libraries, venv
    return None, None


def loads(library):
    "Whether the system has a shared library."
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def problems(folder, names, version=sys.version_info, libraries=LIBRARIES, free=None):
    "What is missing, a sentence each."
    found = []
    for_libraries, for_venv = commands(names)
    if not (3, 10) <= tuple(version[:2]) < (3, 14):
        found.append("mammo_nb needs Python 3.10 to 3.13, and this is {0}.{1}. Name another one: "
                     "make install PYTHON=python3.12".format(*version))
    try:
        importlib.import_module("venv")
        importlib.import_module("ensurepip")
    except ImportError:
        command = (for_venv or "install the package of your system that has it").format(*version)
        found.append("Python has no module venv: " + command)
    place = os.path.abspath(folder)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free if free is None else free
    same_disk = os.stat(place).st_dev == os.stat(tempfile.gettempdir()).st_dev
    needed = GIGABYTES + (DOWNLOADS if same_disk else 0)
    if free < needed * 1e9:
        found.append("{0} has {1:.1f} GB free, and the installation needs about {2}. Make room, or name another place: "
                     "make install VENV=/elsewhere/venv".format(place, free / 1e9, needed))
    absent = [name for name in libraries if not loads(name)] if sys.platform.startswith("linux") else []
    if absent:
        command = for_libraries or "install the packages of your system that have them"
        found.append("OpenCV needs {0}, which this system lacks: {1}".format(" and ".join(absent), command))
    return found


if __name__ == "__main__":
    missing = problems(sys.argv[1] if len(sys.argv) > 1 else ".", distribution())
    if missing:
        sys.exit("\n".join(missing))
