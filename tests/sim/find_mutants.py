"""Which mutants are no longer found in the schedule that test_mutants.py names, and in which they are.

`python -m tests.sim.find_mutants`: after the code or the scene has changed, since to look for one takes up to a minute.
"""

from itertools import count

from tests.sim.green import installed
from tests.sim.mutants import MUTANTS, applied
from tests.sim.simulation import run
from tests.sim.test_mutants import FOUND_IN
from tests.sim.world import Broken


def is_found(seed: int) -> bool:
    return isinstance(run(seed).error, Broken)


def main() -> None:
    with installed():
        for name, mutant in MUTANTS.items():
            with applied(mutant):
                if not is_found(FOUND_IN.get(name, 0)):
                    print(f'    "{name}": {next(filter(is_found, count()))},', flush=True)


if __name__ == "__main__":
    main()
