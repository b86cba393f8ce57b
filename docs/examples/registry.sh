#!/bin/sh
# The registry's nine HTTP endpoints, called as an older client calls them. Needs curl alone.
#
#   sh registry.sh health                        the gateway lives
#   sh registry.sh list ['?status=running']      all services; filters: status=..., healthy=true|false
#   sh registry.sh register NAME HOST PORT       a server that speaks OpenAI's API over HTTP
#   sh registry.sh get NAME
#   sh registry.sh change NAME '{"metadata": {"weight": 2}}'
#   sh registry.sh probe NAME                    look now whether it works
#   sh registry.sh heartbeat NAME [STATUS]
#   sh registry.sh stats
#   sh registry.sh remove NAME
#   sh registry.sh keep NAME HOST PORT           register, then a heartbeat every 30 s; registers again when told to
#
# GATEWAY is where the gateway (or its --registry-port) answers. Exits 0 when the answer was 2xx; prints the answer either way.
set -eu
GATEWAY=${GATEWAY:-http://127.0.0.1:8000}
INTERVAL=${INTERVAL:-30}

call() {
    method=$1 path=$2
    shift 2
    curl --silent --show-error --fail-with-body --max-time 30 --request "$method" "$GATEWAY$path" "$@"
}

send() {
    call "$1" "$2" --header 'content-type: application/json' --data "$3"
}

register() {
    send POST /services "{\"name\": \"$1\", \"host\": \"$2\", \"port\": $3, \"hostname\": \"$(hostname)\",
        \"url\": \"http://$2:$3\", \"status\": \"running\", \"metadata\": {\"type\": \"openai-api\"}}"
}

keep() {
    register "$@"
    while sleep "$INTERVAL"; do
        echo
        # 404: the registry knows the service no longer. Everything else passes: the gateway may be starting again.
        answer=$(call POST "/services/$1/heartbeat" --write-out ' %{http_code}' 2>&1) || true
        echo "$answer"
        case $answer in *' 404'*) register "$@" || true ;; esac
    done
}

verb=${1:-}
[ $# -eq 0 ] || shift
case $verb in
health) call GET /health ;;
list) call GET "/services${1:-}" ;;
register) register "$1" "$2" "$3" ;;
get) call GET "/services/$1" ;;
change) send PUT "/services/$1" "$2" ;;
probe) call GET "/services/$1/health" ;;
heartbeat) send POST "/services/$1/heartbeat" "{\"status\": \"${2:-running}\"}" ;;
stats) call GET /stats ;;
remove) call DELETE "/services/$1" ;;
keep) keep "$1" "$2" "$3" ;;
*)
    sed -n 's/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
