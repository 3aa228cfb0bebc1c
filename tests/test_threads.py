"""Threads fit the cores that a process may use, a container's quota included."""

import os

import pytest
import torch

from genrl import threads


@pytest.fixture
def cores(monkeypatch, tmp_path):
    """Sets the cores of the affinity mask, and the files of a container."""

    def set_(mask, **files):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(mask)), raising=False)
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(threads, "QUOTAS", (str(tmp_path / "max"), f"{tmp_path / 'quota'} {tmp_path / 'period'}"))

    return set_


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"max": "max 100000\n"}, 8),
        ({"max": "350000 100000\n"}, 3),
        ({"max": "50000 100000\n"}, 1),
        ({"max": "1600000 100000\n"}, 8),
        ({"quota": "-1\n", "period": "100000\n"}, 8),
        ({"quota": "400000\n", "period": "100000\n"}, 4),
        ({"max": "no numbers"}, 8),
    ],
)
def test_a_quota_counts(cores, files, expected):
    cores(8, **files)
    assert threads.usable_cpus() == expected


@pytest.mark.parametrize(("processes", "expected"), [(1, 6), (2, 3), (4, 1), (16, 1)])
def test_processes_share_them(cores, monkeypatch, processes, expected):
    cores(6)
    found = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    threads.fit_threads(processes)
    assert found == [expected]
