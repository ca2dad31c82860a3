"""Blocks through several processes, their results in order.

for result in in_order(process, blocks, num_workers):      # process(block) runs in workers; with 1 it runs here
    ...

Workers are forked, so that all share what `process` holds (a tokenizer of some hundred MB) as it was before. Not more
blocks are on their way than keep them busy. What a worker raises, it raises here.
"""

import collections
import concurrent.futures
import ctypes
import multiprocessing
import os
import signal

from prepare.errors import UserError

MOST_WORKERS = 8  # each takes memory of its own for a block: 2 GB must suffice for all
PR_SET_PDEATHSIG = 1

_process = None


def available_cores():
    """Cores that this process may keep busy."""
    cores = len(os.sched_getaffinity(0))
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as f:
            quota, period = f.read().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def _begin():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and ends its workers
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a parent that is killed leaves none behind


def _work(block):
    return _process(block)


def in_order(process, blocks, num_workers):
    if num_workers == 1:
        yield from map(process, blocks)
        return
    global _process
    _process = process
    context = multiprocessing.get_context("fork")
    pool = concurrent.futures.ProcessPoolExecutor(num_workers, mp_context=context, initializer=_begin)
    try:
        waiting = collections.deque()
        for block in blocks:
            waiting.append(pool.submit(_work, block))
            if len(waiting) > 2 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except concurrent.futures.process.BrokenProcessPool:
        raise UserError(
            "a process of data preparation was killed, most likely for lack of memory\n"
            "  fix: split long documents, or use a machine with more memory"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        _process = None
