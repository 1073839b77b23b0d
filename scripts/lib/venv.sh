# shellcheck shell=bash
# Makes and fills .venv for demo.sh and test.sh. Source it in bash with ROOT set to the repository.

# find_python CANDIDATE...: print the first one that is a Python of a supported version.
find_python() {
    local candidate
    for candidate in "$@"; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    echo "error: no Python 3.10, 3.11 or 3.12 found (tried: $*); install one, or set PYTHON to it and delete .venv if it exists" >&2
    return 1
}

# with_progress WHAT LOG COMMAND...: run quietly, show what it does and for how long.
with_progress() {
    local what=$1 log=$2 start=$SECONDS status=0 next=30 child last
    shift 2
    : >"$log"
    "$@" >"$log" 2>&1 &
    child=$!
    # shellcheck disable=SC2064  # the number of this child, now
    trap "kill $child 2>/dev/null; exit 130" INT TERM
    while kill -0 "$child" 2>/dev/null; do
        last=$(grep -oE '^(Collecting|Downloading|Installing collected packages|Building|  Downloading) ?[^ ,(]*' "$log" | tail -n 1 || :)
        if [ -t 2 ]; then
            printf '\r\033[K%s: %d s  %.60s' "$what" "$((SECONDS - start))" "$last" >&2
        elif [ "$((SECONDS - start))" -ge "$next" ]; then
            printf '%s: %d s  %s\n' "$what" "$((SECONDS - start))" "$last" >&2
            next=$((next + 30))
        fi
        sleep 1
    done
    wait "$child" || status=$?
    trap - INT TERM
    if [ -t 2 ]; then printf '\r\033[K' >&2; fi
    if [ "$status" -ne 0 ]; then
        tail -n 20 "$log" >&2
        echo "error: $what failed with code $status; the whole output is in '$log'" >&2
        return "$status"
    fi
    echo "$what: done in $((SECONDS - start)) s" >&2
}

# ensure_venv [EXTRA]: an environment in .venv that holds requirements.txt and, with an argument, that extra
# of pyproject.toml. Installs only when those files or the interpreter have changed since the last time.
ensure_venv() {
    local extra=${1:-} venv=$ROOT/.venv python stamp wanted
    if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        if [ -n "${PYTHON:-}" ]; then
            python=$(find_python "$PYTHON")
        else # python3 may be too new or too old while another one is there
            python=$(find_python python3 python3.12 python3.11 python3.10 python)
        fi
        echo "making .venv with $("$python" --version)" >&2
        "$python" -m venv "$venv" ||
            { echo "error: '$python -m venv' failed; on Debian and Ubuntu install the package python3-venv" >&2 && return 1; }
    fi
    find_python "$venv/bin/python" >/dev/null
    stamp=$venv/installed${extra:+-$extra}
    wanted="$(cat "$ROOT/requirements.txt" "$ROOT/pyproject.toml" | cksum) $ROOT $("$venv/bin/python" --version)"
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
        with_progress "installing requirements.txt${extra:+ and tools for $extra}" "$venv/install.log" \
            "$venv/bin/python" -m pip install --disable-pip-version-check --no-input -e "$ROOT${extra:+[$extra]}"
        printf '%s\n' "$wanted" >"$stamp"
    fi
    PYTHON=$venv/bin/python
}
