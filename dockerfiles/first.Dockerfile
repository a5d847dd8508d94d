# The shop, as one might write it on the first day. It works, and has two faults:
# chapter 01 finds them.
ARG BASE=python:3.13
FROM ${BASE}
# pip reads these two as settings: take the wheels from this folder, ask no index.
ARG PIP_NO_INDEX
ARG PIP_FIND_LINKS=/src/wheels
WORKDIR /src
# A Python environment of its own for the shop.
RUN python3 -m venv --without-pip /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY . .
# First the libraries, then the shop itself.
RUN pip --python /opt/venv install -r requirements.txt
RUN pip --python /opt/venv install --no-deps .
WORKDIR /
USER 10001
# gunicorn is the web server that runs the shop.
CMD ["gunicorn", "--bind=0.0.0.0:8000", "--no-control-socket", "shop.app:app"]
