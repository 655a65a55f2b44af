# `sh on_ray.sh ARGUMENTS`: run `pairmill ARGUMENTS` with the Python that runs Ray on this node.
#
# Ray runs a job's entrypoint in a shell, but does not say which Python Ray itself uses. The `python` on the PATH may be
# a different one, because `/opt/venv/bin/ray start` works without activating the environment. But the command line of
# the raylet, an ancestor of this shell, names the Python of its workers.
pid=$PPID
python=
while [ -z "$python" ] && [ "${pid:-0}" -gt 1 ]; do
    python=$(tr '\0' '\n' < "/proc/$pid/cmdline" | sed -n '
        s/^--python_worker_command="\([^"]*\)".*/\1/p
        s/^--python_worker_command=\([^" ]*\) .*/\1/p')
    pid=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$pid/status")
done
exec "${python:-python}" -m pairmill "$@"
