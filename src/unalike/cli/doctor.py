"""``unalike doctor``: what works on this machine."""

from __future__ import annotations

from unalike.cli.output import Json, print_json
from unalike.errors import RunError


def doctor(*, json: Json = False) -> None:
    """Say what works on this machine, what is missing, and how to get it.

    Each line: ok, missing, slow or broken; what it is; what was found; what that means; how to get it. Nothing is
    fetched or sent. Exit code 1 if something that is needed is missing or broken.
    """
    from unalike.study.doctor import examine_machine

    checks = examine_machine()
    stopping = [check.what for check in checks if check.stops]
    if json:
        print_json({"works": not stopping, "checks": checks})
    else:
        for check in checks:
            print(f"{check.state:8}{check.what}: {check.found} ({check.means}).")
            if check.get:
                print(f"{'':8}  → {check.get}")
        counts = {state: sum(check.state == state for check in checks) for state in ("missing", "slow", "broken")}
        print(f"{len(checks)} looked at; " + ", ".join(f"{count} {state}" for state, count in counts.items()) + ".")
    if stopping:
        raise RunError(f"needed and not working: {', '.join(stopping)}. The lines above say how to get it.")
