"""The README's walk "On two machines", on hosts that share nothing but a network.

python -m benchmarks.two_hosts --folder .demo/two-hosts         as root, with iproute2

    operator ── compiles, profiles, plans, deploys, asks
    laptop   ── source and a device     desktop ── a device, behind 100 Mbit/s or `--megabits`
    stranger ── has the cluster file and a key of its own that is in nobody's list

Each host has its address, its folder and its clock; keys are made where they belong and stay
there; what is copied between hosts is the cluster file and public keys. Devices run from an
environment without torch. Every promise that the walk makes is checked, and the first that does
not hold ends it.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from benchmarks.network_lab import Host, Lab
from edgeshard.local_run import default_checkpoint
from edgeshard.schemas import files
from edgeshard.schemas.plan import Plan
from edgeshard.schemas.profile import Profile

ROOT = Path(__file__).parents[1]
QUESTION = "What is the capital of France?"
PORT = 7000
MEMORY_MIB = 325  # of each device: less than the whole model takes, so that the split is real
MEGABITS = 100
METRICS = "127.0.0.1:9464"
FIGURES_SECONDS = 2.0  # until an agent knows what its stage has counted
LONG = "The river passes a mill, a bridge and a town. " * 36  # a prompt of about 400 tokens
NUM_CUTS = 7
LIMIT_SECONDS = 20.0
COMMAND_SECONDS = 120.0  # and what the link takes for the whole model
MODEL_MEGABITS = 800
DEVICES = ("laptop", "desktop")
HOSTS = (*DEVICES, "operator", "stranger")
# Which ports a host listens at, and who connects to them: the README's table.
TABLE = {
    "laptop": {7000: {"operator", "laptop"}, 7001: {"desktop", "laptop"}}
    | {7002: {"desktop", "laptop"}, 7003: {"operator"}},
    "desktop": {7000: {"operator", "laptop"}, 7001: {"laptop", "desktop"}},
}


def check(holds: bool, what: str, seen: object = "") -> None:
    """Say what holds, and end where it does not."""
    print(f"{'ok  ' if holds else 'FAIL'} {what}{f': {seen}' if seen != '' else ''}", flush=True)
    if not holds:
        raise SystemExit(1)


class Walk:
    """The steps, in the README's order."""

    def __init__(self, lab: Lab, device_esc: Path, megabits: int) -> None:
        self.lab = lab
        self._megabits = megabits
        self.operator = lab.hosts["operator"]
        self.stranger = lab.hosts["stranger"]
        self.devices = [lab.hosts[name] for name in DEVICES]
        self._own_esc = Path(sys.executable).parent / "esc"
        self._device_esc = device_esc

    def esc(self, host: Host, *words: str | Path, fails: bool = False) -> str:
        """Run `esc` on a host; its output."""
        started = time.monotonic()
        program = self._device_esc if host in self.devices else self._own_esc
        limit = COMMAND_SECONDS + MODEL_MEGABITS / self._megabits
        done = host.run(program, *words, limit_seconds=limit)
        took = f"{time.monotonic() - started:.1f} s"
        shown = f"{host.name}$ esc {' '.join(map(str, words[:2]))[:60]} …"
        if not fails:
            check(done.returncode == 0, shown, took if done.returncode == 0 else done.stderr)
        if not fails:
            return done.stdout
        said = " ".join((done.stdout + done.stderr).split())
        return f"{done.returncode} {said}"

    def compile(self) -> None:
        """Step 1: the machine that compiles; what an earlier walk made of it is reused."""
        for name in ("profile.json", "plan.json"):
            (self.operator.folder / name).unlink(missing_ok=True)
        words = ("--out", "store", "--precision", "int4", "--name", "smollm2")
        self.esc(self.operator, "compile", default_checkpoint(), *words)

    def keys(self) -> None:
        """Step 2: each makes its own pair, and tells the public half."""
        for host in (*self.devices, self.operator, self.stranger):
            name = "me" if host in (self.operator, self.stranger) else host.name
            if not (host.folder / "keys" / f"{name}.secret").exists():
                self.esc(host, "keys", name)

    def cluster_file(self) -> None:
        """Step 3: addresses that the others reach; the same file for everybody."""
        keys = {host.name: _public(host, host.name) for host in self.devices}
        lines = [
            'format = "edgeshard.cluster/1"',
            'source = "laptop"',
            f'operators = ["{_public(self.operator, "me")}"]',
            "clients = []",
        ]
        for host in self.devices:
            lines += ["", "[[devices]]", f'name = "{host.name}"', f'address = "{host.address}"']
            lines += [f"port = {PORT}", f'public_key = "{keys[host.name]}"']
            lines += [f"memory_mib = {MEMORY_MIB}", "threads = 1"]
        for host in self.lab.hosts.values():
            (host.folder / "cluster.toml").write_text("\n".join(lines) + "\n", "utf-8")

    def agents(self) -> None:
        """Step 5, and the operator's status once they are there."""
        for host in self.devices:
            self._start_agent(host)
        self.esc(self.operator, "status", *self._ways())

    def _start_agent(self, host: Host, cluster: str = "cluster.toml") -> None:
        key = ("--key", f"keys/{host.name}.secret", "--store", f"store-{host.name}")
        words = ("agent", "--cluster", cluster, "--name", host.name, *key, "--metrics", METRICS)
        host.start("agent.log", self._device_esc, *words)

    def deploy(self) -> None:
        """Step 6: profile, plan, deploy."""
        model = ("--store", "store", "--model", "smollm2")
        self.esc(self.operator, "profile", *self._ways(), *model, "--out", "profile.json")
        rates = {
            (link.source, link.target): link.bytes_per_second * 8 / 1e6
            for link in files.read(self.operator.folder / "profile.json", Profile).links
            if link.source != link.target
        }
        most = self._megabits
        for (source, target), rate in rates.items():
            what = f"profile: {source} -> {target} is at most the {most} Mbit/s of its link"
            check(0.5 * most < rate < 1.1 * most, what, f"{rate:.1f}")
        asked = ("--objective", "latency", "--context", "2048", "--slots", "1")
        paths = ("--profile", "profile.json", "--cluster", "cluster.toml", "--out", "plan.json")
        self.esc(self.operator, "plan", *paths, *asked, *model)
        plan = files.read(self.operator.folder / "plan.json", Plan)
        used = [stage.device for stage in plan.stages]
        check(sorted(used) == sorted(DEVICES), "the plan needs both hosts", " -> ".join(used))
        print(f"     predicted: {plan.token_seconds * 1000:.2f} ms a token")
        self._deploy()

    def _deploy(self) -> None:
        # One step holds the prompt of `trace`: a second one would compute beside the first one's
        # bytes, on the cores that both hosts share here, and keep them waiting.
        words = ("plan.json", "--chunk-tokens", "512", "--store", "store", "--model", "smollm2")
        self.esc(self.operator, "deploy", *words, *self._ways())

    def ask(self) -> None:
        """An answer over both hosts, and where its time went."""
        answer = self.esc(self.operator, "generate", QUESTION, *self._ways())
        check("Paris" in answer, "the answer comes", answer.strip())

    def trace(self) -> None:
        """Clocks differ by hours; a prompt's hop takes what its bytes take at the link's rate."""
        laptop = self.lab.hosts["laptop"]
        time.sleep(FIGURES_SECONDS)
        before = self._sent_bytes(laptop)
        words = ("trace", LONG, "--raw", "--max-tokens", "9", *self._ways())
        print(self.esc(self.operator, *words, "--out", "trace.json"))
        time.sleep(FIGURES_SECONDS)
        sent = self._sent_bytes(laptop) - before
        events = json.loads((self.operator.folder / "trace.json").read_text("utf-8"))["traceEvents"]
        lanes = {one["tid"]: one["args"]["name"] for one in events if one["name"] == "thread_name"}
        hops = [
            one["dur"] / 1e6
            for one in events
            if one["ph"] == "X" and lanes[one["tid"]] == "laptop -> desktop"
            if one["args"]["positions"] > 1
        ]
        wire, rate = sent * 8 / (self._megabits * 1e6), f"{self._megabits} Mbit/s"
        what = f"{sent} bytes from laptop to desktop take {wire * 1e3:.1f} ms at {rate}"
        check(0.8 * wire < sum(hops) < 1.5 * wire, what, f"traced {sum(hops) * 1e3:.1f} ms")

    def _sent_bytes(self, host: Host) -> int:
        """What a host's stage has sent, by its own metrics."""
        text = host.run("curl", "-s", f"http://{METRICS}/metrics").stdout
        for line in text.splitlines():
            if line.startswith("edgeshard_hop_sent_bytes_total "):
                return int(float(line.split()[1]))
        check(False, f"{host.name} serves metrics on its loopback", text[:200])
        return 0

    def ports(self) -> None:
        """Step 4: the table of ports is the whole truth."""
        names = {host.address: host.name for host in self.lab.hosts.values()}
        for host in self.devices:
            table = TABLE[host.name]
            bound = {line.split()[3] for line in _sockets(host, "-tln")}
            listening = {_port(place) for place in bound - {METRICS}}
            check(listening == set(table), f"{host.name} listens at these ports only", listening)
            place = f"http://{host.address}:{METRICS.rpartition(':')[2]}/metrics"
            reached = self.operator.run("curl", "-s", "-m", "3", place)
            check(reached.returncode != 0, f"the metrics of {host.name} stay on {host.name}")
            for line in _sockets(host, "-tn", "state", "established"):
                _, _, local, remote = line.split()[:4]
                port, sender = _port(local), names[_address(remote)]
                if port in table:
                    who = f"{host.name}:{port} is used by {sender}, as the README says"
                    check(sender in table[port], who)

    def strangers(self) -> None:
        """Another key gets in nowhere, and learns nothing."""
        for command in (("status",), ("generate", QUESTION)):
            seen = self.esc(self.stranger, *command, *self._ways(), fails=True)
            is_refused = seen.startswith("6 ") and "Paris" not in seen
            check(is_refused, f"stranger$ esc {command[0]}: refused", f"… {seen[-120:]}")

    def secrets(self) -> None:
        """Secret halves lie where they were made, and nowhere else."""
        for owner in self.lab.hosts.values():
            (path,) = (owner.folder / "keys").glob("*.secret")
            secret = path.read_bytes().strip()
            others = [host for host in self.lab.hosts.values() if host is not owner]
            found = [
                file
                for host in others
                for file in host.folder.rglob("*")
                if file.is_file() and file.stat().st_size < 2**20 and secret in file.read_bytes()
            ]
            check(not found, f"the secret of {owner.name} is on {owner.name} only", found or "")

    def cable(self) -> None:
        """A cut cable ends the answer that runs: when its command is over, and with which words."""
        took: list[float] = []
        for _ in range(NUM_CUTS):
            words = ("generate", LONG, "--raw", "--max-tokens", "1500", *self._ways())
            answer = self.operator.start("answer.log", self._own_esc, *words)
            log, limit = self.operator.folder / "answer.log", time.monotonic() + LIMIT_SECONDS
            while not log.stat().st_size and time.monotonic() < limit:
                time.sleep(0.02)
            time.sleep(0.1 * len(took))  # at another moment between two signs of life
            is_running = answer.poll() is None
            self.lab.cut("desktop")
            started = time.monotonic()
            answer.wait(LIMIT_SECONDS)
            took.append(time.monotonic() - started)
            self.lab.mend("desktop")
            said = " ".join(log.read_text("utf-8").split())
            names = ("desktop is lost", f"{self.lab.hosts['desktop'].address}:{PORT + 1} is cut")
            is_named = is_running and answer.returncode != 0 and any(one in said for one in names)
            check(is_named, "a cut cable is named", f"{took[-1]:.2f} s: … {said[-90:]}")
            self._deploy()
        what = f"{NUM_CUTS} cuts of the desktop's cable, median and longest"
        check(max(took) < 3, what, f"{statistics.median(took):.2f} s, {max(took):.2f} s")

    def other_file(self) -> None:
        """Step 3 again: an agent that has read another cluster file gets nothing deployed."""
        self.esc(self.operator, "stop", *self._ways())
        desktop = self.lab.hosts["desktop"]
        text = (desktop.folder / "cluster.toml").read_text("utf-8")
        changed = text.replace(f"memory_mib = {MEMORY_MIB}", "memory_mib = 4096")
        (desktop.folder / "other.toml").write_text(changed, "utf-8")
        desktop.started[-1].terminate()
        desktop.started[-1].wait(20)
        self._start_agent(desktop, "other.toml")
        self.esc(self.operator, "status", *self._ways())
        words = ("deploy", "plan.json", *self._ways(), "--store", "store", "--model", "smollm2")
        seen = self.esc(self.operator, *words, fails=True)
        is_named = "desktop" in seen and "cluster" in seen
        check(seen[0] != "0" and is_named, "an agent with another cluster file is refused", seen)

    def end(self) -> None:
        """Stop the agents; nothing is left."""
        for host in self.devices:
            for process in host.started:
                process.terminate()
        codes = [process.wait(20) for host in self.devices for process in host.started]
        check(codes == [0] * len(codes), "agents end at SIGTERM", codes)
        left = self.lab.processes()
        check(not left, "no process is left on any host", left or "")

    def _ways(self) -> tuple[str, ...]:
        return ("--cluster", "cluster.toml", "--key", "keys/me.secret")


def _public(host: Host, name: str) -> str:
    return (host.folder / "keys" / f"{name}.public").read_text("ascii").strip()


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


def _address(address: str) -> str:
    """Without the port, and plain where IPv6 wraps IPv4."""
    return address.rpartition(":")[0].strip("[]").removeprefix("::ffff:")


def _sockets(host: Host, *words: str) -> list[str]:
    return host.run("ss", "-H", *words).stdout.splitlines()


def device_environment(folder: Path) -> Path:
    """`esc` of an environment with what a device needs: no torch."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), str(ROOT)], check=True)
    subprocess.run([*pip, "--force-reinstall", "--no-deps", str(ROOT)], check=True)
    asks = "import importlib.util as u; raise SystemExit(u.find_spec('torch') is not None)"
    done = subprocess.run([python, "-P", "-c", asks], check=False)
    check(done.returncode == 0, "the devices' environment has no torch")
    return folder / "bin" / "esc"


def _interrupted(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    """Walk."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, default=Path(".demo/two-hosts"))
    parser.add_argument("--megabits", type=int, default=MEGABITS, help="of the desktop's link")
    chosen = parser.parse_args()
    folder = chosen.folder.resolve()
    signal.signal(signal.SIGTERM, _interrupted)
    device_esc = device_environment(folder / "device-environment")
    with Lab(folder / "hosts", HOSTS) as lab:
        lab.shape("desktop", chosen.megabits)
        walk = Walk(lab, device_esc, chosen.megabits)
        walk.compile()
        walk.keys()
        walk.cluster_file()
        walk.agents()
        walk.strangers()
        walk.deploy()
        walk.ask()
        walk.trace()
        walk.ports()
        walk.strangers()
        walk.secrets()
        walk.cable()
        walk.other_file()
        walk.end()
    print("the walk holds")


if __name__ == "__main__":
    main()
