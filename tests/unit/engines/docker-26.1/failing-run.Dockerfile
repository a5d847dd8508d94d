FROM localhost:26162/base/python@sha256:039c189750eb1ae72be0f664d10ab7f9fabf1aa0e7d4346095ff97d1bfaf3c82

RUN echo first word && \
    printf aside >&2 && exit 3
