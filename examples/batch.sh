#!/bin/sh
# A batch job: a shell script, Python programs and programs that only print, all in one log.
#
#     examples/batch.sh [LOG]
#     MPLOG="python3 -m mplog" examples/batch.sh [LOG]
set -eu

log=${1:-batch.log}
mplog=${MPLOG:-mplog}
rm -f "$log"

# For the whole script. It is stopped however the script ends, and says so if anything was not written.
MPLOG_QUEUE=$($mplog serve start --log "$log" --level INFO)
export MPLOG_QUEUE
trap '$mplog serve stop' EXIT

$mplog log info "begin" files:=3

# All at once, each with a record of its own.
convert() {
    $mplog log --logger convert info "converted" file="$1"
}
for file in a.wav b.wav c.wav; do
    convert "$file" &
done
wait

# A program that only prints: a record for each line, errors as warnings.
$mplog run --capture --name check -- sh -c 'echo "3 files are fine"; echo "1 is empty" >&2'

# A Python program that knows nothing of mplog.
$mplog run --python -- "${PYTHON:-python3}" -c '
import logging
logging.getLogger("report").info("from an ordinary Python program")
'

$mplog log info "end"
