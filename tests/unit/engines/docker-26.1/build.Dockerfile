ARG BASE=localhost:26162/base/python@sha256:039c189750eb1ae72be0f664d10ab7f9fabf1aa0e7d4346095ff97d1bfaf3c82
FROM ${BASE} AS first
ARG WORD=none
RUN echo out loud ac54 && \
    printf 'Step 9/9 : %s' fake && sleep 0.3
COPY a.txt /word
FROM ${BASE}
COPY --from=first /word /word
COPY one /
