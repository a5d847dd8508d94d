# The shop in two stages: the first has the tools and builds, the second has
# what runs. Only the second becomes the image.
#
#   docker build -f dockerfiles/multistage.Dockerfile -t shop:multistage dockerfiles/app
ARG BUILD_BASE=python:3.13
ARG BASE=python:3.13-slim

# Stage 1: the workshop. Nothing of it reaches the server.
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

# Stage 2: the product. The environment comes over, the compiler stays behind.
# Both stages need the same Python at the same path: the environment points to it.
FROM ${BASE}
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

# Empty means: the version that shop/__init__.py says.
ARG VERSION
ENV APP_VERSION=${VERSION}

# A number, not a name, so that a server can tell that it is not root.
USER 10001
EXPOSE 8000
CMD ["gunicorn", "--bind=0.0.0.0:8000", "--access-logfile=-", \
     "--no-control-socket", "shop.app:app"]
