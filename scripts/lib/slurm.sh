# shellcheck shell=sh
# What the sbatch scripts share; POSIX sh. Source it with ROOT set to the repository.
# SLURM warns the batch script before the time is over (--signal=B:USR1@seconds). The warning goes on to
# the run, which saves and ends with 75, and the job is queued again, to go on where it stopped.
#   MAX_REQUEUES  how often a job may come back (default: 100)

# wait_for_step: wait for the process $step, pass a warning on as signal $1, set status and warned.
wait_for_step() {
    warned=0 on_warning=$1
    trap 'warned=1; kill -s "$on_warning" "$step" 2>/dev/null' USR1
    trap ':' TERM # a cancelled job: SLURM tells the steps itself
    status=0
    wait "$step" || status=$?
    while kill -0 "$step" 2>/dev/null; do # a trapped signal ends `wait` early
        status=0
        wait "$step" || status=$?
    done
    trap - USR1 TERM
}

# on_every_machine COMMAND...: one task a machine; ends with the command's exit code, or queues the job again.
on_every_machine() {
    # A machine that fails ends the others after two minutes, time enough for them to save and leave.
    srun --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 --wait=120 "$@" &
    step=$!
    wait_for_step USR1
    [ "$status" = 75 ] && [ "$warned" = 1 ] || exit "$status"
    queue_again
}

queue_again() {
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "${MAX_REQUEUES:-100}" ]; then
        echo "error: job $SLURM_JOB_ID was queued again $SLURM_RESTART_COUNT times, MAX_REQUEUES allows ${MAX_REQUEUES:-100}; submit it anew to go on" >&2
        exit "$status"
    fi
    echo "the time is over; queueing job $SLURM_JOB_ID again" >&2
    scontrol requeue "$SLURM_JOB_ID"
}
