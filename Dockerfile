# One node of taskqueue: docs/howto/docker.md. Three of them: deploy/compose.yml.
ARG PYTHON=3.12-slim

FROM python:${PYTHON} AS build
WORKDIR /src
# Says how the image's Python was built (the official ones: with PGO and LTO), and ends the build where it does not fit.
COPY deploy/interpreter.py deploy/
RUN python deploy/interpreter.py
# What the package needs comes first: it changes seldom, and the layer is kept.
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE ./
COPY tq_node tq_node
COPY tq_tui tq_tui
COPY twisted twisted
RUN python -m venv /opt/taskqueue
# The versions that the suite was run with, also of what builds the package.
RUN PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
    /opt/taskqueue/bin/pip install --no-cache-dir --disable-pip-version-check .
# twistd looks for plugins at each start, and could not write down what it found.
RUN /opt/taskqueue/bin/twistd --help > /dev/null

FROM python:${PYTHON}
RUN groupadd --gid 10001 taskqueue && useradd --uid 10001 --gid taskqueue --no-create-home --shell /usr/sbin/nologin taskqueue
RUN install --directory --owner=taskqueue --group=taskqueue --mode=0700 /data && install --directory /handlers
COPY --from=build /opt/taskqueue /opt/taskqueue
COPY deploy/make-cluster-ca deploy/container-certificates /usr/local/bin/
# /handlers: modules with task handlers, mounted or copied there by an image that is made FROM this one.
WORKDIR /handlers
ENV PATH=/opt/taskqueue/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TQ_DATA_DIR=/data/node
USER taskqueue
VOLUME /data
EXPOSE 8080
# Whether the process lives. That it can serve is another question (/ready), and no reason to restart it.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, ssl, urllib.request; certificate = os.environ.get('TQ_HTTP_CERT'); tls = ssl._create_unverified_context() if certificate else None; certificate and tls.load_cert_chain(certificate, os.environ['TQ_HTTP_KEY']); urllib.request.urlopen(('https' if certificate else 'http') + '://127.0.0.1:' + os.environ.get('TQ_HTTP', '8080').rpartition(':')[2] + '/health', timeout=2, context=tls).read()"]
STOPSIGNAL SIGTERM
# The node is process 1 and gets the signals itself: no shell, and no init, stands between.
ENTRYPOINT ["twistd", "-n", "taskqueue"]
