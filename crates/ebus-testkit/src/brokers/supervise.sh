# Runs a server as long as its owner lives: supervise.sh NODE_DIR RUN_DIR LOG COMMAND...
# The owner holds the other end of our standard input. When it ends, however it ends, we read the end of the file, kill the
# server and remove what it leaves. This needs no unsafe code between fork and exec, as PR_SET_PDEATHSIG would, and does not
# end the server with the thread that started it, as PR_SET_PDEATHSIG does.
node=$1 run=$2 log=$3
shift 3
exec 3<&0 </dev/null
"$@" 3<&- >>"$log" 2>&1 &
server=$!
echo "$server"
exec >/dev/null 2>&1

orphaned() {
    kill -KILL "$server"
    wait "$server"
    rm -rf "$node"
    for other in "$run"/node-*; do
        [ -e "$other" ] || rm -rf "$run"
    done
    exit 0
}
trap orphaned TERM
(
    read -r _ <&3
    kill -TERM $$
) &
watcher=$!
exec 3<&-
wait "$server"
kill -KILL "$watcher"
