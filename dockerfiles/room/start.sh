#!/bin/sh
# A learner's server begins here. The engine is the container beside; it shares this one's network,
# and a volume with its socket. What is there already, from last time, is left as it is.
set -eu
state=${LABAPP_STATE:-$HOME/.local/state/labapp}
mkdir -p "$HOME/notebooks" "$HOME/out" "$state"
cp -rn /opt/lab/chapters/. "$HOME/notebooks/"

tries=0
until docker image inspect labapp/registry:room > /dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -lt 300 ] || { echo "starting the lab: no engine answers at $DOCKER_HOST." >&2; exit 1; }
    sleep 0.2
done

# The base images are in the engine's image. The registry's volume is laid over them: it begins with
# all of them, and takes no room for it.
if [ ! -s "$state/id" ]; then
    od -An -N4 -tx1 /dev/urandom | tr -d ' \n' > "$state/id.new"
    mv "$state/id.new" "$state/id"
fi
lab=$(cat "$state/id")
docker tag labapp/registry:room "labapp/registry:$lab"
docker volume inspect "labapp-registry-$lab" > /dev/null 2>&1 ||
    docker volume create --label "labapp.lab=$lab" --label labapp.role=registry \
        --opt type=overlay --opt device=overlay --opt "o=$(cat /run/lab/overlay)" \
        "labapp-registry-$lab" > /dev/null
cp /run/lab/bases.json "$state/bases.json" # those of this engine's image, not of the last one's

# While the server starts. Should this fail, the first cell of a chapter does it again, and tells.
python3 -m labapp prepare &
cd "$HOME/notebooks"
# An init first: what a learner left running ends, and is not counted for ever.
exec tini -g -- "$@"
