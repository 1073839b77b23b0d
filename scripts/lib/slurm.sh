# shellcheck shell=sh
# What the sbatch scripts share; POSIX sh. Source it with ROOT set to the repository.
# shellcheck source=scripts/lib/common.sh
. "$ROOT/scripts/lib/common.sh"

# job SIGNAL COMMAND...: run a command and end with its exit code. SLURM warns the batch script before the time
# is over (--signal=B:USR1@seconds). The warning goes on to the command as SIGNAL; when it has left, the job is
# queued again, MAX_REQUEUES times at most (100), to go on where it stopped. After USR1 a run ends with 75 if it
# could save; any other code is an error.
job() {
    warned=0 on_warning=$1
    shift
    "$@" &
    step=$!
    trap 'warned=1; kill -s "$on_warning" "$step" 2>/dev/null' USR1
    trap ':' TERM # a cancelled job: SLURM tells the steps itself
    await "$step"
    case $warned$on_warning$status in 1USR175 | 1TERM[1-9]*) ;; *) exit "$status" ;; esac
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "${MAX_REQUEUES:-100}" ]; then
        say "error: job $SLURM_JOB_ID was queued again $SLURM_RESTART_COUNT times, MAX_REQUEUES allows ${MAX_REQUEUES:-100}; submit it anew to go on"
        exit "$status"
    fi
    say "the time is over; queueing job $SLURM_JOB_ID again"
    scontrol requeue "$SLURM_JOB_ID"
}
