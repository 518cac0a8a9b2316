"""Tells the agent beside it to take no more events: what a pod's `preStop` hook runs, when the pod begins to end.

    python -I -S stop_pull.py /run/mesh/agent.sock [seconds]

It is a script for a bare interpreter: nothing of ours and little of the standard library is imported, so that it takes
milliseconds and a few megabytes while the application shuts down beside it. It returns once what was pushed is settled,
or the agent's `stop_pull_s` is over. Exit status: 0 all of it is settled; 1 not all, or nobody answered; 2 misuse.
"""

import sys

PATIENCE_S = 60.0  # above any sensible `stop_pull_s`: the agent answers at its own deadline
REQUEST = b"POST /v1/stop-pull HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
MAX_ANSWER_BYTES = 65_536


def ask(path: str, patience_s: float) -> bytes:
    """The agent's whole answer.

    Raises:
        OSError: Nobody is there, or nobody answers in time.
    """
    from _socket import AF_UNIX, SOCK_STREAM, socket  # the module `socket` around it takes 6 ms to import

    link = socket(AF_UNIX, SOCK_STREAM)
    try:
        link.settimeout(patience_s)
        link.connect(path)
        sent = 0
        while sent < len(REQUEST):
            sent += link.send(REQUEST[sent:])
        answer = b""
        while len(answer) < MAX_ANSWER_BYTES and (more := link.recv(4096)):
            answer += more
        return answer
    finally:
        link.close()


def main(arguments: "list[str]") -> int:
    """Ask, and say on stderr why it failed where it did."""
    try:
        path, patience_s = arguments[0], float(arguments[1]) if len(arguments) > 1 else PATIENCE_S
    except (IndexError, ValueError):
        sys.stderr.write("stop_pull.py <socket> [seconds]: the agent's control_socket, and how long to wait\n")
        return 2
    try:
        answer = ask(path, patience_s)
    except OSError as error:
        sys.stderr.write(f"stop_pull.py: no agent answers at {path}: {error.strerror or type(error).__name__}\n")
        return 1
    head, _, body = answer.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 200 ") and b'"settled":true' in body:
        return 0
    sys.stderr.write(f"stop_pull.py: not all is settled: {body.decode('utf-8', 'replace')[:300]}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
