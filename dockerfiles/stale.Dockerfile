# An old base image, made today: every Debian package goes back to where the
# last point release left it, so the security updates since then are missing.
# Chapter 04 needs one to patch. Never run such an image for real.
#
#   docker build -f dockerfiles/stale.Dockerfile -t team/python:old dockerfiles/app
ARG BASE=python:3.13-slim
FROM ${BASE}

# Debian's main archive beats its security suite, even where that means to go
# back. A real old image simply has not been rebuilt.
RUN printf 'Package: *\nPin: release l=Debian\nPin-Priority: 1001\n' \
        > /etc/apt/preferences.d/step-back \
    && apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get dist-upgrade -y --allow-downgrades \
    && rm -rf /etc/apt/preferences.d/step-back /var/lib/apt/lists/*
