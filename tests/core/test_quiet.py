from __future__ import annotations

import logging
import threading
import warnings

from afire_monai.core.quiet import quiet


def test_warnings_and_logs_of_pydicom_and_highdicom_are_silent_inside_the_block_only(caplog, recwarn):
    caplog.set_level(logging.WARNING, "pydicom")  # a command that ran before in this process silences it for good
    with quiet():
        warnings.warn("PatientName is Doe", UserWarning, stacklevel=1)
        logging.getLogger("pydicom.dataset").error("PatientName is Doe")
        logging.getLogger("highdicom.sr").error("PatientName is Doe")
    assert not caplog.records
    assert not recwarn.list
    logging.getLogger("pydicom.dataset").error("heard again")
    assert [record.message for record in caplog.records] == ["heard again"]


def test_a_block_that_ends_in_another_thread_leaves_this_one_silent(caplog, recwarn):
    caplog.set_level(logging.WARNING, "pydicom")
    begun, end = threading.Event(), threading.Event()

    def other() -> None:
        with quiet():
            begun.set()
            end.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait(60)
    with quiet():
        end.set()
        thread.join()
        warnings.warn("PatientName is Doe", UserWarning, stacklevel=1)
        logging.getLogger("pydicom.dataset").error("PatientName is Doe")
    assert not caplog.records
    assert not recwarn.list
    logging.getLogger("pydicom.dataset").error("heard again")
    assert [record.message for record in caplog.records] == ["heard again"]
