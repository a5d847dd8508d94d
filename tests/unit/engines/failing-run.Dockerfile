ARG BASE
FROM ${BASE}
RUN echo first word && \
    printf aside >&2 && exit 3
