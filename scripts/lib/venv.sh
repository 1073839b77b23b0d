# shellcheck shell=bash
# Makes and fills .venv for demo.sh and test.sh. Source it in bash with ROOT set to the repository.

give_up() { echo "error: $*" >&2; exit 1; }

# ensure_venv [EXTRA]: an environment in .venv that holds the set of requirements.txt and, with an argument, that
# extra of pyproject.toml. Installs only when those files or the interpreter have changed since the last time.
ensure_venv() {
    local extra=${1:-} venv=$ROOT/.venv python stamp wanted
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        # python3 may be too new or too old while another one is there
        for python in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10 python}; do
            "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && break
            python=
        done
        [ -n "$python" ] || give_up "no Python 3.10 to 3.13 found (looked for ${PYTHON:-python3 and python3.x}); install one, or set PYTHON to it"
        echo "making .venv with $("$python" --version)" >&2
        "$python" -m venv "$venv" || give_up "'$python -m venv' failed; on Debian and Ubuntu install the package python3-venv"
    fi
    PYTHON=$venv/bin/python stamp=$venv/installed${extra:+-$extra}
    wanted="$(cat "$ROOT/requirements.txt" "$ROOT/pyproject.toml" | cksum) $ROOT $("$PYTHON" --version)"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "installing requirements.txt${extra:+ and tools for $extra} into .venv" >&2
        "$PYTHON" -m pip install --disable-pip-version-check --no-input -r "$ROOT/requirements.txt" -e "$ROOT${extra:+[$extra]}" >&2
        printf '%s\n' "$wanted" >"$stamp"
    fi
}
