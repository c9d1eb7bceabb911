"""A hub of one model on this machine, and the cache that huggingface_hub and quantc share."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

NAME, COMMIT = "tiny/demo", "0123456789abcdef0123456789abcdef01234567"
# What huggingface_hub does in a process of its own: where it looks is read from the environment when it is imported.
FETCH = "import sys, huggingface_hub as hub\nfor name in sys.argv[2:]: print(hub.hf_hub_download(sys.argv[1], name))"
FIND = "import sys, huggingface_hub as hub\nprint(hub.snapshot_download(sys.argv[1], local_files_only=True))"


class Hub:
    """Serves the files of a directory as the hub does: the list of a revision, and each file with its hash, whole or from a byte on."""

    def __init__(self, directory: Path):
        files = {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):  # noqa: N802, the name is the library's
                self.answer(True)

            def do_HEAD(self):  # noqa: N802
                self.answer(False)

            def answer(self, whole: bool) -> None:
                status, headers, body = self.found()
                self.send_response(status)
                for name, value in [*headers.items(), ("content-length", str(len(body)))]:
                    self.send_header(name, value)
                self.end_headers()
                if whole:
                    self.wfile.write(body)

            def found(self) -> tuple[int, dict[str, str], bytes]:
                name = self.path.rsplit("/", 1)[1]
                if self.path.startswith(f"/api/models/{NAME}/revision/"):
                    listing = {"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                    return 200, {}, json.dumps(listing).encode()
                if not self.path.startswith(f"/{NAME}/resolve/") or name not in files:
                    return 404, {}, b""
                body = files[name]
                git = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
                etag = hashlib.sha256(body).hexdigest() if name.endswith(".safetensors") else git
                headers = {"etag": f'"{etag}"', "x-repo-commit": COMMIT, "accept-ranges": "bytes"}
                if asked := self.headers.get("range"):
                    first = int(asked.removeprefix("bytes=").split("-")[0])
                    headers["content-range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
                    return 206, headers, body[first:]
                return 200, headers, body

        self.files = list(files)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: Path, offline: bool) -> dict[str, str]:
        """That of a program whose cache is in `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy") and not name.startswith("HF_")}
        address = f"http://127.0.0.1:{self.server.server_port}"
        return kept | {"HF_HOME": str(home), "HF_ENDPOINT": address} | ({"HF_HUB_OFFLINE": "1"} if offline else {})


def shared(binary: Path, model: Path, work: Path) -> dict[str, list[str]]:
    """By what is checked, what is wrong: each program uses what the other one downloaded, without a network."""
    homes = work / "hub-ours", work / "hub-theirs"
    snapshot = Path("hub") / f"models--{NAME.replace('/', '--')}" / "snapshots" / COMMIT

    def ran(command: list[str], home: Path, offline: bool) -> str:
        done = subprocess.run(command, env=hub.environment(home, offline), capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
        return done.stdout

    def differing(home: Path) -> list[str]:
        names = ("config.json", "model.safetensors", "tokenizer.json")
        return [name for name in names if (home / snapshot / name).read_bytes() != (model / name).read_bytes()]

    with Hub(model) as hub:
        ran([str(binary), "inspect", NAME], homes[0], offline=False)
        found = ran([sys.executable, "-c", FIND, NAME], homes[0], offline=True).strip()
        wrong = differing(homes[0]) + [f"huggingface_hub finds {found}"] * (found != str(homes[0] / snapshot))
        ran([sys.executable, "-c", FETCH, NAME, *hub.files], homes[1], offline=False)
        said = ran([str(binary), "inspect", NAME], homes[1], offline=True)
    return {
        "downloaded here, found by huggingface_hub": wrong,
        "downloaded by huggingface_hub, found here": differing(homes[1]) + [said[:80]] * (COMMIT not in said),
    }
