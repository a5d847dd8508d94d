ARG BASE
FROM ${BASE} AS first
ARG WORD=none
RUN echo out loud ac54 && \
    printf 'Step 9/9 : %s' fake && sleep 0.3
COPY a.txt /word
FROM ${BASE}
COPY --from=first /word /word
COPY one /
