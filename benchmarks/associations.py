"""C-STORE of small objects, such as reports, over a connection as pynetdicom opens it and as this package does.

    python benchmarks/associations.py

Sender and receiver are in this process; both sides are measured in turn, object by object, on two open associations.
"""

from __future__ import annotations

import argparse
import statistics
import time

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import BasicTextSRStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt

from afire_monai.hospital.pacs.association import limit_connection


def report(characters: int) -> Dataset:
    """Return an object with so much text in it."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = BasicTextSRStorage, generate_uid()
    dataset.TextValue = "x" * characters
    return dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=50)
    parser.add_argument("--characters", type=int, default=5000)
    arguments = parser.parse_args()
    archive = AE()
    archive.add_supported_context(BasicTextSRStorage)
    server = archive.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _: 0)])
    sender = AE()
    sender.add_requested_context(BasicTextSRStorage)
    address = ("127.0.0.1", server.server_address[1])
    opened = (evt.EVT_CONN_OPEN, limit_connection, [30.0])
    sides = {
        "pynetdicom": sender.associate(*address),
        "this package": sender.associate(*address, evt_handlers=[opened]),
    }
    sent, seconds = report(arguments.characters), {name: list[float]() for name in sides}
    for _ in range(arguments.objects):
        for name, association in sides.items():
            begin = time.perf_counter()
            assert association.send_c_store(sent).Status == 0
            seconds[name].append(time.perf_counter() - begin)
    middle = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    for name, value in middle.items():
        print(f"{name}: {value:.1f} ms an object, median of {arguments.objects}")
        sides[name].release()
    print(f"ratio: {middle['pynetdicom'] / middle['this package']:.1f}")
    server.shutdown()


if __name__ == "__main__":
    main()
