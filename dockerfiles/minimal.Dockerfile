# The shop with nothing around it: the last stage begins empty, and gets the
# interpreter, the libraries that it loads, and the shop. There is no shell, no
# package manager, and nothing to log in to.
#
#   docker build -f dockerfiles/minimal.Dockerfile -t shop:minimal dockerfiles/app
ARG BUILD_BASE=python:3.13
ARG BASE=python:3.13-slim

# Stage 1: the workshop, the same as in multistage.Dockerfile. An engine that
# has built that one takes this stage from its cache.
FROM ${BUILD_BASE} AS build

# pip reads these as settings. With PIP_NO_INDEX=1 it takes the wheels from the
# folder that is copied below, and asks no index.
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS=/src/wheels

WORKDIR /src
RUN python3 -m venv --without-pip /opt/venv

# What seldom changes comes first: as long as requirements.txt stays the same,
# this layer comes from the cache.
COPY wheels wheels
COPY requirements.txt .
RUN pip --python /opt/venv install --no-cache-dir -r requirements.txt

# What changes every day comes last. This step compiles shop/_prices.c.
COPY pyproject.toml .
COPY shop shop
RUN pip --python /opt/venv install --no-cache-dir --no-deps .

# Stage 2: the selection. Out of the slim image, collect.py copies what Python
# needs into the folder /root-of-image, and finds by itself which libraries.
FROM ${BASE} AS selection
COPY --from=build /opt/venv /opt/venv
COPY collect.py /
RUN python3 /collect.py /root-of-image /opt/venv

# What no package brings: a folder for temporary files, and a name and a group
# for the number that the service runs as. What goes: the scripts that change the
# settings of a shell.
RUN install -d -m 1777 /root-of-image/tmp \
    && echo "shop:x:10001:10001::/:" > /root-of-image/etc/passwd \
    && echo "shop:x:10001:" > /root-of-image/etc/group \
    && rm /opt/venv/bin/*ctivate*

# Stage 3: the product. "scratch" is no image but the word for an empty one.
#
# The shop calls no other service and reads no local time. A service that does
# needs a line more here for the certificates, or for the time zones:
#
#   COPY --from=selection /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
#   COPY --from=selection /usr/share/zoneinfo /usr/share/zoneinfo
FROM scratch
COPY --from=selection /root-of-image /
COPY --from=selection /opt/venv /opt/venv
ENV PATH=/opt/venv/bin

# Empty means: the version that shop/__init__.py says.
ARG VERSION
ENV APP_VERSION=${VERSION}

# A number, not a name, so that a server can tell that it is not root.
USER 10001

# Without a shell, RUN takes a program and its arguments. This one changes
# nothing: should a library be missing, it is the build that fails, and not the
# server.
RUN ["python3", "-c", "import shop.app, gunicorn.app.wsgiapp"]

EXPOSE 8000
CMD ["gunicorn", "--bind=0.0.0.0:8000", "--access-logfile=-", \
     "--no-control-socket", "shop.app:app"]
