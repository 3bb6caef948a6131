"""Known vulnerabilities of what constraints.txt pins, by pip-audit. Exit code 1 where there are some; 0 where there are
none, and where it cannot be had, which is said."""

import json
import subprocess
import sys

COMMAND = [sys.executable, "-m", "pip_audit", "--requirement", "constraints.txt", "--no-deps", "--disable-pip",
           "--format", "json", "--progress-spinner", "off", "--timeout", "5"]  # fmt: skip


def main() -> int:
    try:
        ended = subprocess.run(COMMAND, capture_output=True, text=True, timeout=300)
        packages = json.loads(ended.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        print("audit: could not be had: no answer within 5 minutes")
        return 0
    except (ValueError, KeyError):
        print(f"audit: could not be had: {(ended.stderr.strip() or 'it said nothing').splitlines()[-1]}")
        return 0
    known = [package for package in packages if "vulns" in package]
    if not known:
        print(f"audit: could not be had: the database knows none of {len(packages)} packages")
        return 0
    bad = [(package, vulnerability) for package in known for vulnerability in package["vulns"]]
    for package, vulnerability in bad:
        fixed = ", ".join(vulnerability["fix_versions"]) or "no version"
        print(f"audit: {package['name']} {package['version']}: {vulnerability['id']}, mended in {fixed}")
    print(f"audit: {len(bad)} known vulnerabilities in {len(known)} of {len(packages)} packages")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
