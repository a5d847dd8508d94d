# The shop on the slim Python image: the honest first try. The base is small,
# but has no compiler, so this image installs one. And keeps it.
#
#   docker build -f dockerfiles/slim.Dockerfile -t shop:slim dockerfiles/app
ARG BASE=python:3.13-slim
FROM ${BASE}

# The compiler, the C library's headers, and Python's. All three are needed
# once, for one file, and stay in this layer for good.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev \
    && rm -rf /var/lib/apt/lists/*

# pip reads these as settings. With PIP_NO_INDEX=1 it takes the wheels from the
# folder that is copied below, and asks no index.
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS=/src/wheels

WORKDIR /src
RUN python3 -m venv --without-pip /opt/venv
ENV PATH=/opt/venv/bin:$PATH

# What seldom changes comes first: as long as requirements.txt stays the same,
# this layer comes from the cache.
COPY wheels wheels
COPY requirements.txt .
RUN pip --python /opt/venv install --no-cache-dir -r requirements.txt

# What changes every day comes last. This step compiles shop/_prices.c.
COPY pyproject.toml .
COPY shop shop
RUN pip --python /opt/venv install --no-cache-dir --no-deps .

# Away from the source: the service runs the installed package.
WORKDIR /

# Empty means: the version that shop/__init__.py says.
ARG VERSION
ENV APP_VERSION=${VERSION}

# A number, not a name, so that a server can tell that it is not root.
USER 10001
EXPOSE 8000
CMD ["gunicorn", "--bind=0.0.0.0:8000", "--access-logfile=-", \
     "--no-control-socket", "shop.app:app"]
