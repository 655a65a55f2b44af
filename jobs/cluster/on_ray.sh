# `sh on_ray.sh ARGUMENTS`: run `pairmill ARGUMENTS` on the Python that this node's Ray runs on.
#
# Ray hands a job's entrypoint to a shell and does not tell it which Python Ray itself uses. The `python` on the PATH may
# be another one: `/opt/venv/bin/ray start` needs nothing activated. But the raylet, a parent of this shell, names the
# Python of its workers on its command line.
pid=$PPID
python=
while [ -z "$python" ] && [ "${pid:-0}" -gt 1 ]; do
    python=$(tr '\0' '\n' < "/proc/$pid/cmdline" | sed -n '
        s/^--python_worker_command="\([^"]*\)".*/\1/p
        s/^--python_worker_command=\([^" ]*\) .*/\1/p')
    pid=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$pid/status")
done
exec "${python:-python}" -m pairmill "$@"
