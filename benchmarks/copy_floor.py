"""The copy floor: reads every input once and writes one output of a given size, durably, in a tiny process.

    python benchmarks/copy_floor.py OUTPUT SIZE_BYTES THREADS INPUT...

No merge that reads its inputs and writes its output can be faster than this on the same machine and disk.
"""

import os
import sys
import threading

BLOCK_BYTES = 8 << 20


def main() -> None:
    output, size, threads, *inputs = sys.argv[1:]
    sources = [os.open(path, os.O_RDONLY) for path in inputs]
    target = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)
    workers = [
        threading.Thread(target=copy_blocks, args=(sources, target, int(size), first, int(threads)))
        for first in range(int(threads))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    os.fsync(target)


def copy_blocks(sources: list[int], target: int, size: int, first: int, step: int) -> None:
    """Read blocks first, first + step, … of every source and write those that the output has."""
    buffer = memoryview(bytearray(BLOCK_BYTES))
    end = max(size, *(os.fstat(source).st_size for source in sources))
    for offset in range(first * BLOCK_BYTES, end, step * BLOCK_BYTES):
        for source in sources:
            read_block(source, buffer, offset)
        write_block(target, buffer[: max(0, min(BLOCK_BYTES, size - offset))], offset)


def read_block(source: int, buffer: memoryview, offset: int) -> None:
    while buffer and (count := os.preadv(source, [buffer], offset)):
        buffer, offset = buffer[count:], offset + count


def write_block(target: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(target, data, offset)
        data, offset = data[count:], offset + count


if __name__ == "__main__":
    main()
