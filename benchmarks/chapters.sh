#!/bin/sh
# The docker commands of chapters 00 to 03, as a person would type them. Called by chapters.py with
# the registry's address, the two base images by digest, and a folder that holds the files.
set -eu
R=$1 FULL=$2 SLIM=$3 REGISTRY=$4
cd "$5"

ask() {  # the first published port of a container, and a path
    address=$(docker port "$1" 8000/tcp | head -1)
    until curl --silent --fail "http://$address$2" > /dev/null; do sleep 0.05; done
}
build() { docker build --quiet --build-arg BASE="$FULL" --build-arg PIP_NO_INDEX=1 "$@"; }
serve() {  # what a server does with an image: pull, replace, wait
    docker pull --quiet "$1"
    docker rm --force web
    docker run -d --name web -p 127.0.0.1::8000 "$1"
    ask web /health
}

# 00
docker build --quiet -t "$R/hello/web:1.0" --build-arg BASE="$SLIM" 00
docker push --quiet "$R/hello/web:1.0"
docker image rm "$R/hello/web:1.0"
docker pull --quiet "$R/hello/web:1.0"
docker run -d --name hello -p 127.0.0.1::8000 "$R/hello/web:1.0"
ask hello /
docker rm --force hello

# 01
build --no-cache -t "$R/shop/web:first" -f first.Dockerfile app
docker run -d --name shop -p 127.0.0.1::8000 "$R/shop/web:first"
ask shop '/price/tea?count=3'
docker push --quiet "$R/shop/web:first"
echo "# One more comment." >> app/shop/app.py
build -t "$R/shop/web:first" -f first.Dockerfile app
build -t "$R/shop/web:first" -f first.Dockerfile app
cp -r app leaky
echo "DATABASE_PASSWORD=correct-horse" > leaky/secrets.env
head -c 20000000 /dev/urandom > leaky/backup.sql
build -t "$R/shop/web:leaky" -f first.Dockerfile leaky
docker run --rm "$R/shop/web:leaky" ls -l /src
docker run --rm "$R/shop/web:leaky" cat /src/secrets.env
docker rm --force shop

# 02
build --build-arg VERSION=1.0 -t "$R/shop/web:1.0" app
docker push --quiet "$R/shop/web:1.0"
echo "# One more comment." >> app/shop/app.py
build --build-arg VERSION=1.1 -t "$R/shop/web:1.1" app
docker push --quiet "$R/shop/web:1.1"
docker image rm "$R/shop/web:1.0" "$R/shop/web:1.1"
docker pull --quiet "$R/shop/web:1.1"
serve "$R/shop/web:1.0"
docker image rm "$R/shop/web:1.1"
docker stop "$REGISTRY"
ask web /health
if docker pull --quiet "$R/shop/web:1.1"; then exit 1; fi
ask web /health
docker start "$REGISTRY"
until curl --silent --fail "http://$R/v2/"; do sleep 0.05; done
serve "$R/shop/web:1.1"
docker rm --force web

# 03
build --build-arg VERSION=1.4 -t "$R/shop/web:1.4" app
docker tag "$R/shop/web:1.4" "$R/shop/web:1.4-tested"
docker push --quiet "$R/shop/web:1.4-tested"
docker push --quiet "$R/shop/web:1.4"
PINNED=$(docker inspect --format '{{index .RepoDigests 0}}' "$R/shop/web:1.4")
serve "$R/shop/web:1.4"
sed -i 's/"tea": 190/"tea": 19000/' app/shop/app.py
build --build-arg VERSION=1.4 -t "$R/shop/web:1.4" app
docker push --quiet "$R/shop/web:1.4"
serve "$R/shop/web:1.4"
serve "$PINNED"
build --no-cache --build-arg VERSION=1.4 -t "$R/shop/web:1.4" app
docker push --quiet "$R/shop/web:1.4"
serve "$PINNED"
for note in first second; do
    printf 'FROM %s\nRUN echo %s > /etc/team-note\n' "$SLIM" $note > team/Dockerfile
    docker build --quiet -t "$R/team/base:1" team
    docker push --quiet "$R/team/base:1"
    docker build --quiet -t "$R/page/web:1" page
    docker run --rm "$R/page/web:1" cat /etc/team-note
done
docker rm --force web
