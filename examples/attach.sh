#!/bin/sh
# A shell script whose programs all write into one log.
#
#     examples/attach.sh [LOG]
#     PYTHON=python3.13 examples/attach.sh [LOG]
#
# attach_server.py starts a server and runs the command that follows, as env and nohup do. Whatever that command
# starts finds the server by the environment variable MPLOG_QUEUE.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
log=${1:-attach.log}
export PYTHON="${PYTHON:-python3}" JOB="$here/attach_job.py"
rm -f "$log"

"$PYTHON" "$here/attach_server.py" "$log" sh -eu -c '
    "$PYTHON" "$JOB" fetch 3 &
    "$PYTHON" "$JOB" convert 2 &
    wait
    "$PYTHON" "$JOB" report 1
'
cat "$log"
