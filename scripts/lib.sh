# shellcheck shell=bash
# Sourced by the scripts beside it. Brings this checkout to where it can run: Debian packages that
# are missing, and .venv with exactly the packages of requirements/*.txt. It writes .venv,
# .venv.lock and .venv.log and, through apt-get, the system; nothing else.
#
#   need_system        Python 3.11 or newer, OpenMP's library and, if llama.cpp must be built, a
#                      C++ compiler: by apt-get, and only what is missing
#   make_venv SET      .venv holds requirements/SET.txt (llama or dev; dev includes llama)
#
# Both return at once when there is nothing to do. Both end the script with a message on failure.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
log=$root/.venv.log # what pip and the compiler said in the last install

# An environment set up for another project must not leak into this one.
unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_ROOT PIP_CONSTRAINT
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '%s\n' "$*" >&2; }

die() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    shift
    (($# == 0)) || printf '  %s\n' "$@" >&2
    exit 1
}

# --- the system ---------------------------------------------------------------------------------

need_system() {
    local missing=()
    find_python >/dev/null || missing+=(python3 python3-venv)
    command -v flock >/dev/null || missing+=(util-linux)
    have_openmp || missing+=(libgomp1)
    llama_installed || llama_kept || have_compiler || missing+=(g++)
    ((${#missing[@]} == 0)) || need_packages "${missing[@]}"
    find_python >/dev/null || die "hxd needs Python 3.11 or newer with venv; the one here is older." \
        "Debian 12 and later have a newer one; or put a python3.11 or newer on PATH."
}

need_packages() { # PACKAGE...: installs them, or ends with their names
    as_root=() # the words that go before a command that takes root
    command -v apt-get >/dev/null || die "this is not a Debian with apt-get, and something is missing." \
        "Install what your system has for these Debian packages, then try again: $*"
    if ((EUID != 0)); then
        command -v sudo >/dev/null || die "something is missing, and installing it takes root" \
            "(there is no sudo). As root: apt-get install $*"
        as_root=(sudo)
    fi
    say "installing with apt-get: $*"
    # Finishes what an earlier, interrupted run left half configured.
    "${as_root[@]}" dpkg --configure -a >&2 || true
    apt_get update || say "apt-get update failed; trying with the package lists that are there"
    apt_get install --yes --no-install-recommends "$@" || die "apt-get could not install: $*" \
        "Its messages are above. Then try again."
}

apt_get() { # its own account of each package, less the lines that only say what comes next
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300 "$@" </dev/null 2>&1 |
        sed -u -e '/^Selecting /d' -e '/^Preparing /d' -e '/^Unpacking /d' -e '/^(Reading /d' >&2
}

find_python() { # prints a Python that is new enough and can make environments
    local candidate
    for candidate in python3 /usr/bin/python3 python3.{14,13,12,11}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}

have_compiler() {
    [[ -n ${CXX-} ]] || command -v c++ >/dev/null || command -v g++ >/dev/null ||
        command -v clang++ >/dev/null
}

have_openmp() { # the run-time library that llama.cpp's threads come from
    # Not grep -q: it would end ldconfig by SIGPIPE, and with pipefail that reads as "absent".
    PATH=$PATH:/usr/sbin:/sbin ldconfig -p 2>/dev/null | grep 'libgomp\.so\.1' >/dev/null
}

# --- a long step ----------------------------------------------------------------------------------

run_logged() { # LABEL COMMAND...: runs it with its output in $log; shows that time passes
    local label=$1 began=$SECONDS child elapsed shown=0 step status=0
    shift
    # A process group of its own, so that an interrupt can take the compilers with it.
    set -m
    "$@" </dev/null >>"$log" 2>&1 &
    child=$!
    set +m
    # shellcheck disable=SC2064  # the child of now
    trap "stop_group $child; exit 130" INT
    # shellcheck disable=SC2064
    trap "stop_group $child; exit 143" TERM HUP
    while kill -0 "$child" 2>/dev/null; do
        sleep 0.5
        elapsed=$((SECONDS - began))
        if [[ -t 2 ]]; then
            # ninja counts its steps in the log.
            step=$(tail -c 2000 "$log" | grep -oE '\[[0-9]+/[0-9]+\]' | tail -n 1) || step=
            printf '\r\033[K%s  %d:%02d %s' "$label" $((elapsed / 60)) $((elapsed % 60)) "$step" >&2
        elif ((elapsed >= shown + 15)); then
            shown=$elapsed
            step=$(tail -c 2000 "$log" | grep -oE '\[[0-9]+/[0-9]+\]' | tail -n 1) || step=
            say "$label: still at it after ${elapsed} s${step:+ $step}"
        fi
    done
    wait "$child" || status=$?
    trap - INT TERM HUP
    [[ ! -t 2 ]] || printf '\r\033[K' >&2
    if ((status == 0)); then
        say "$label: done in $((SECONDS - began)) s"
    else
        say "$label: failed after $((SECONDS - began)) s (exit status $status). The end of $log:"
    fi
    return "$status"
}

stop_group() { # PID of a group's leader: asks it to end, then makes it
    [[ ! -t 2 ]] || printf '\n' >&2
    # pip tidies its temporary folders on SIGINT and not on SIGTERM.
    kill -INT -- "-$1" 2>/dev/null || return 0
    for _ in {1..50}; do
        kill -0 -- "-$1" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL -- "-$1" 2>/dev/null || true
}

install_failed() { # WHAT: the end of the log, and what to do
    rm -f "$venv/.installing"
    tail -n 40 "$log" | sed 's/^/  | /' >&2
    die "$1" "The whole log: $log" "Run the same command again to go on from here."
}

# --- the environment ------------------------------------------------------------------------------

python_here() { # which Python .venv runs, and where .venv is: both are written into its scripts
    "$venv/bin/python" -c 'import sys; print(sys.version_info[:2], sys.prefix)' 2>/dev/null
}

digest() { # SET: changes when what .venv should hold changes
    {
        python_here
        cat "$root"/requirements/{build,"$1"}.txt "$root/pyproject.toml"
    } | sha256sum
}

installed() { # SET
    [[ -f $venv/.installed-$1 && $(<"$venv/.installed-$1") == "$(digest "$1")" ]]
}

pip_install() { # LABEL ARGUMENT...
    local label=$1
    shift
    # The environment's own cmake and ninja come first on PATH.
    PATH=$venv/bin:$PATH run_logged "$label" \
        "$venv/bin/python" -m pip install --no-build-isolation --verbose "$@"
}

make_venv() { # SET
    local wanted=$1
    # dev holds everything that llama does.
    if installed "$wanted" || installed dev; then
        return
    fi
    # Whoever comes second waits, and then finds the work done. pip inherits the lock: if this
    # script is killed, the next one still waits for what it left running.
    exec 9>"$root/.venv.lock"
    if ! flock --nonblock 9; then
        say "another install into $venv is running; waiting for it"
        flock 9
    fi
    if ! installed "$wanted" && ! installed dev; then
        install_locked "$wanted"
    fi
    exec 9>&-
}

install_locked() { # SET, with the lock held
    local set=$1
    rm -f "$venv"/.installed-*
    : >"$log"
    # An install that was cut off may have left packages that look whole; pip's own failures don't.
    if [[ -e $venv/.installing || ! -f $venv/.made || $(<"$venv/.made") != "$(python_here)" ]]; then
        run_logged "making $venv" "$(find_python)" -m venv --clear "$venv" ||
            install_failed "the environment could not be made."
        python_here >"$venv/.made"
    fi
    : >"$venv/.installing"
    pip_install "build tools" --require-hashes -r "$root/requirements/build.txt" ||
        install_failed "the build tools could not be installed."
    install_llama
    pip_install "packages ($set)" --require-hashes -r "$root/requirements/$set.txt" ||
        install_failed "the packages of requirements/$set.txt could not be installed."
    pip_install "hxd" --no-deps --editable "$root" || install_failed "hxd could not be installed."
    rm "$venv/.installing"
    digest "$set" >"$venv/.installed-$set.new"
    mv "$venv/.installed-$set.new" "$venv/.installed-$set"
}

llama_version() { sed -n 's/^llama-cpp-python==\([^ ]*\).*/\1/p' "$root/requirements/llama.txt"; }

llama_installed() {
    "$venv/bin/python" -c 'import sys, importlib.metadata as m
sys.exit(m.version("llama-cpp-python") != sys.argv[1])' "$(llama_version)" 2>/dev/null
}

llama_runs() {
    "$venv/bin/python" -c 'import llama_cpp; llama_cpp.llama_backend_init()' >>"$log" 2>&1
}

llama_kept() { # pip has kept a wheel from an earlier build
    local cache=${PIP_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME-}/.cache}/pip}
    [[ -n $(find "$cache/wheels" -name "llama_cpp_python-$(llama_version)-*.whl" 2>/dev/null) ]]
}

# llama-cpp-python comes as source and is built for this machine's processor, which takes minutes;
# pip keeps the wheel, so that happens once per machine and user.
install_llama() {
    local status=0
    if ! llama_installed; then
        if llama_kept; then
            # What was kept may be for another Python, and pip then tries to build.
            llama_packages "llama.cpp" || build_llama
        else
            build_llama
        fi
    fi
    llama_runs || status=$?
    if ((status == 132)); then # SIGILL
        say "the llama.cpp that pip kept was built for another processor; building it again"
        "$venv/bin/python" -m pip cache remove "llama_cpp_python-*" >>"$log" 2>&1 || true
        build_llama --force-reinstall
        status=0
        llama_runs || status=$?
    fi
    ((status == 0)) || install_failed "llama-cpp-python is installed and does not load."
}

build_llama() { # [ARGUMENT...]
    have_compiler || need_packages g++
    llama_packages "building llama.cpp (some minutes, once)" "$@" ||
        install_failed "llama-cpp-python could not be built."
}

llama_packages() { # LABEL [ARGUMENT...]
    local label=$1
    shift
    pip_install "$label" "$@" --require-hashes -r "$root/requirements/llama.txt"
}
