# A base image that nobody has rebuilt for a long time, made today: Debian 12
# with Python, as its last point release left it. All security updates that
# came later are missing. Chapter 04 needs one to patch; never run it for real.
#
#   docker build -f dockerfiles/stale.Dockerfile -t team/python:old dockerfiles/app
ARG BASE=python:3.13-slim
FROM ${BASE} AS make
RUN apt-get update && apt-get install -y --no-install-recommends mmdebstrap

# The mirror that the base image uses. The security suite is only named in the
# result: the packages are taken without it.
RUN archive=$(grep -rhoE 'https?://[^ ]+/debian/?' /etc/apt/sources.list* | head -n 1) \
    && security=$(grep -rhoE 'https?://[^ ]+/debian-security/?' /etc/apt/sources.list* | head -n 1) \
    && mmdebstrap --mode=root --skip=chroot/mount --variant=apt --include=python3-minimal \
       --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
       bookworm /old "deb $archive bookworm main" \
    && echo "deb $security bookworm-security main" >> /old/etc/apt/sources.list

FROM scratch
COPY --from=make /old /
CMD ["python3"]
