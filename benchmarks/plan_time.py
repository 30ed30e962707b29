"""How long does `limbeck plan quickstart` take, as a whole process, without its probe?"""

import subprocess
import sys
import time

from record import record, spread


def main() -> None:
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "limbeck", "plan", "quickstart", "--no-probe"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    print(spread(seconds[1:]))
    record("plan_time", {"seconds": spread(seconds[1:])})


if __name__ == "__main__":
    main()
