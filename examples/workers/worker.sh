#!/bin/sh
# A worker of curl and jq: sh worker.sh localhost:8080. One task at a time; its handler is the function below.
set -u
node=$1 worker=${WORKER:-shell-$$} types='["greet"]' lease=30
auth=${TQ_TOKEN:+Authorization: Bearer $TQ_TOKEN}

handle() { # payload in JSON on standard input; JSON on standard output, or an exit code that is not 0
    jq -c '"Hello, \(.)!"'
}

post() { # path, body; tried again until a node answers, for each of these calls may be sent again
    until curl -sf --max-time 60 ${auth:+-H "$auth"} --json "$2" "$node$1"; do sleep 1; done
}

trap 'exit 0' TERM INT
while :; do
    id=$(cat /proc/sys/kernel/random/uuid)
    answer=$(post /work/claim "{\"worker\":\"$worker\",\"claim_id\":\"$id\",\"types\":$types,\"limit\":1,\"wait\":20,\"lease\":$lease}")
    [ "$(printf %s "$answer" | jq -r .state)" = stop ] && exit 0
    claim=$(printf %s "$answer" | jq -c '.claims[0] // empty')
    [ -n "$claim" ] || continue
    held=$(printf %s "$claim" | jq -c '{task_id, token}')
    # Extends the lease for as long as the handler runs.
    (while sleep $((lease / 4)); do post /work/extend "{\"worker\":\"$worker\",\"claims\":[$held]}" >/dev/null; done) &
    extends=$!
    if result=$(printf %s "$claim" | jq -c .payload | handle); then
        end=$(jq -nc --argjson held "$held" --argjson result "$result" '$held + {outcome: "completed", result: $result}')
    else
        end=$(jq -nc --argjson held "$held" '$held + {outcome: "failed", error: {type: "HandlerFailed", message: "exit code"}}')
    fi
    kill $extends 2>/dev/null
    post /work/finish "{\"worker\":\"$worker\",\"claims\":[$end]}" >/dev/null
done
