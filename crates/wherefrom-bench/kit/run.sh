#!/bin/sh
# Measures this machine's GPU within ten minutes, into the folder given (or ./report): report.json, report.md and log.txt.
#   ./run.sh [FOLDER] [--minutes 10] [--device gpu:1] [--memory BYTES]
# Needs sh, gzip and a Vulkan driver; the rest lies beside this script.
here=$(cd "$(dirname "$0")" && pwd) || exit 1
case "${1:-}" in "" | -*) folder=report ;; *) folder=$1 && shift ;; esac
mkdir -p "$folder" || exit 1

program=$here/wherefrom-bench
if [ ! -x "$program" ]; then
    # Where the kit's folder cannot be written, beside the report.
    gzip -dc "$here/wherefrom-bench.gz" >"$program" 2>/dev/null || program=$folder/wherefrom-bench
    [ -s "$program" ] || gzip -dc "$here/wherefrom-bench.gz" >"$program" || exit 1
    chmod +x "$program" || exit 1
fi

# The machine's own Vulkan loader, where it has one.
for own in /usr/lib/x86_64-linux-gnu /usr/lib64 /usr/lib /lib64 /usr/local/lib; do
    [ -e "$own/libvulkan.so.1" ] && found=yes
done
[ -n "${found:-}" ] || export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$here/lib"

# Without this folder a driver of Mesa's complains.
if [ ! -d "${XDG_RUNTIME_DIR:-}" ]; then
    XDG_RUNTIME_DIR=$(mktemp -d) || exit 1
    export XDG_RUNTIME_DIR
    trap 'rm -rf "$XDG_RUNTIME_DIR"' EXIT
fi

if ! "$program" --help >"$folder/log.txt" 2>&1; then
    cat "$folder/log.txt" >&2
    echo "error: the program does not start here (x86-64 Linux with $(cat "$here/needs.txt"))" >&2
    { nvidia-smi; python3 -c 'import torch; print(torch.__version__, torch.cuda.is_available())'; } >>"$folder/log.txt" 2>&1
    exit 2
fi
WHEREFROM_COMMIT=$(cat "$here/commit.txt") "$program" --gpu-kit "$folder" --golden "$here/golden" "$@"
