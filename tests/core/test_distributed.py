"""Joining the processes of torchrun; sums over processes are tested where they are used, in several processes."""

from __future__ import annotations

import pytest
import torch

from afire_monai.core.distributed import START, join_group
from afire_monai.core.errors import AfireError

TORCHRUN = {
    **{"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "GROUP_WORLD_SIZE": "2"},
    **{"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "3"},
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("name", START)
def test_what_torchrun_sets_is_asked_for_by_name(monkeypatch, name):
    monkeypatch.delenv(name)
    with pytest.raises(AfireError, match=f"^{name} not set in the environment; .* torchrun"):
        join_group("gloo")


def test_restarts_on_several_nodes_need_a_new_store_each_time():
    with pytest.raises(AfireError, match=r"--max-restarts 3 on 2 nodes .* TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        join_group("gloo")


@pytest.mark.parametrize(
    ("key", "value"),
    [("GROUP_WORLD_SIZE", "1"), ("TORCHELASTIC_MAX_RESTARTS", "0"), ("TORCHELASTIC_USE_AGENT_STORE", "False")],
)
def test_one_node_or_no_restart_or_a_store_of_its_own_goes_on_to_join(monkeypatch, key, value):
    monkeypatch.setenv(key, value)
    met = []
    monkeypatch.setattr("torch.distributed.TCPStore", lambda *args, **options: met.append((args, options)))
    monkeypatch.setattr("torch.distributed.PrefixStore", lambda prefix, store: prefix)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda backend, **options: met.append(options))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    join_group("gloo")
    if key == "TORCHELASTIC_USE_AGENT_STORE":
        assert met == [{"timeout": None}]
    else:
        wait = {"timeout": torch.distributed.default_pg_timeout}
        assert met[0] == (("127.0.0.1", 1), {"is_master": False, "wait_for_workers": False, **wait})
        assert met[1] == {"timeout": None, "store": "start_2", "rank": 0, "world_size": 2}
