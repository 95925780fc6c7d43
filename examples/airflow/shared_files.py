"""Tasks in pods of their own that share files through httpnas, with nothing but curl.

Put it into the folder of DAGs. It needs the provider ``apache-airflow-providers-cncf-kubernetes``,
and a daemon that the pods find at ``NAS``. Each pod says who it is by a token of its service
account that is for this daemon alone. A daemon without ``--auth`` does not ask for it.

Airflow runs a task again when it has failed, also when only the answer was lost. So that a second
run does no harm

- an upload replaces the file,
- an append carries an ``Idempotency-Key`` that is the same in every try,
- a move that finds nothing to move is right if the file is where it belongs.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow import DAG
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from kubernetes.client import models as k8s

NAS = "http://http-nas.nas.svc.cluster.local:3000"
#: Has a shell with pipefail, curl, and the usual small tools.
IMAGE = "curlimages/curl:8.11.1"
PARTS = 4

#: Where the pods have their token. The kubelet renews it, so each request reads it anew.
TOKEN = "/var/run/secrets/httpnas/token"
token_volume = k8s.V1Volume(
    name="httpnas",
    projected=k8s.V1ProjectedVolumeSource(
        sources=[
            k8s.V1VolumeProjection(
                service_account_token=k8s.V1ServiceAccountTokenProjection(
                    audience="httpnas", path="token"
                )
            )
        ]
    ),
)
token_mount = k8s.V1VolumeMount(
    name="httpnas", mount_path="/var/run/secrets/httpnas", read_only=True
)

#: What each script begins with. A daemon that is being replaced says 503 with Retry-After: then
#: curl waits and asks again. Never so with a pipe at either end, as what went through it is gone:
#: there the task fails, and Airflow runs it again.
PRELUDE = """
folder="$NAS/file/airflow/{{ run_id }}"
stream() { curl -sSf -H "Authorization: Bearer $(cat "$TOKEN")" "$@"; }
ask() { stream --retry 5 --retry-connrefused "$@"; }
cd "$(mktemp -d)"
"""


def task(task_id: str, script: str) -> KubernetesPodOperator:
    """Return a task that runs *script* in a pod."""
    return KubernetesPodOperator(
        task_id=task_id,
        name=task_id.replace("_", "-"),
        image=IMAGE,
        cmds=["sh", "-euo", "pipefail", "-c"],
        arguments=[PRELUDE + script],
        env_vars={"NAS": NAS, "TOKEN": TOKEN},
        volumes=[token_volume],
        volume_mounts=[token_mount],
    )


with DAG(
    dag_id="shared_files",
    schedule=None,
    start_date=datetime(2024, 1, 1),
    catchup=False,
    default_args={"retries": 3, "retry_delay": timedelta(seconds=30)},
    doc_md=__doc__,
) as dag:
    # A dump of any size: nothing is kept in the pod. If the program before curl fails, so does the
    # task, but half a dump is stored, as curl cannot tell. So nobody reads it by this name.
    dump = task("dump", 'seq 1 1000 | stream -X POST -T - "$folder/numbers.txt"')

    # Parallel tasks append to one file. Each part lands whole, in one piece, and once.
    append = [
        task(
            f"append_{part}",
            f"""
seq {part}001 {part}250 > part.txt
ask -T part.txt -H "Idempotency-Key: {{{{ run_id }}}}-{part}" "$folder/numbers.txt"
""",
        )
        for part in range(1, PARTS + 1)
    ]

    # The daemon knows the number of lines, and does not read the file for it.
    count = task("count", f'test "$(ask "$folder/numbers.txt/wc")" -eq {1000 + PARTS * 250}')

    # Who looks for the file by its final name finds it complete or not at all.
    move = task(
        "move",
        """
ask -X PUT -H 'Content-Type: application/json' \\
    -d '{"path": "airflow/{{ run_id }}/complete/numbers.txt"}' "$folder/numbers.txt" ||
  ask -I -o /dev/null "$folder/complete/numbers.txt"
""",
    )

    # Out of one file, through a tool, into another. A tool that fails may have written something
    # already: so the result gets its name only when the whole pipe has succeeded.
    summarize = task(
        "summarize",
        """
stream "$folder/complete/numbers.txt" | awk '{ sum += $1 } END { print NR, sum }' |
  stream -X POST -T - "$folder/summary.part"
ask -X PUT -H 'Content-Type: application/json' \\
    -d '{"path": "airflow/{{ run_id }}/complete/summary.txt"}' "$folder/summary.part"
""",
    )

    dump >> append >> count >> move >> summarize
