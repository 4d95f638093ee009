# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_memleak_global_optspecs
    string join \n p/pid= a/all no-children live older= top= max-allocs= allocator= lost= lost-timeout= stacks= suppressions= no-default-suppressions only-stack= gen-suppressions= uid= user-name= comm= cgroup= min-leak= q/quiet v/verbose color= args label-env= o/output= format= metrics-labels= rotate= listen= h/help V/version
end

function __fish_memleak_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_memleak_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_memleak_using_subcommand
    set -l cmd (__fish_memleak_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c memleak -n "__fish_memleak_needs_command" -s p -l pid -d 'Watch this process and its children, those that run already and those to come, and all that they start; several: -p 1,2 or -p 1 -p 2' -r
complete -c memleak -n "__fish_memleak_needs_command" -l older -d 'Of the running processes, show where they hold blocks that are at least so old' -r
complete -c memleak -n "__fish_memleak_needs_command" -l top -d 'How many running processes to report, those that grew most [default: 20], and with --stacks how many places of each interval, where most leaked [default: 10]' -r
complete -c memleak -n "__fish_memleak_needs_command" -l max-allocs -d 'Live blocks to track' -r
complete -c memleak -n "__fish_memleak_needs_command" -l allocator -d 'Count a program\'s own allocator' -r
complete -c memleak -n "__fish_memleak_needs_command" -l lost -d 'Tell lost from reachable' -r -f -a "auto\t'In `run`, where the kernel lets memleak hold processes unseen; elsewhere as `Never`'
always\t'For each process with blocks that it never freed'
never\t'Only where a gate asks for it'"
complete -c memleak -n "__fish_memleak_needs_command" -l lost-timeout -d 'Hold a process for that long at the most' -r
complete -c memleak -n "__fish_memleak_needs_command" -l stacks -d 'Tell which calls allocated what leaked' -r -f -a "auto\t'In `run`, where the kernel can do it, and where another option needs them; elsewhere as `Never`'
always\t''
never\t''"
complete -c memleak -n "__fish_memleak_needs_command" -l suppressions -d 'Ignore leaks that FILE names' -r -F
complete -c memleak -n "__fish_memleak_needs_command" -l only-stack -d 'Show only leaks with such a function or file on their stack' -r
complete -c memleak -n "__fish_memleak_needs_command" -l gen-suppressions -d 'Print a suppression for each place that is shown' -r
complete -c memleak -n "__fish_memleak_needs_command" -l uid -d 'Only processes with this real user id; several: --uid 1,2 or --uid 1 --uid 2' -r
complete -c memleak -n "__fish_memleak_needs_command" -l user-name -d 'Only processes of this user; may be repeated' -r -f -a "(__fish_complete_users)"
complete -c memleak -n "__fish_memleak_needs_command" -l comm -d 'Only processes whose command name matches (!GLOB: does not match); may be repeated' -r
complete -c memleak -n "__fish_memleak_needs_command" -l cgroup -d 'Only processes in this control group (version 2) and those below it; may be repeated' -r -f -a "(__fish_complete_directories)"
complete -c memleak -n "__fish_memleak_needs_command" -l min-leak -d 'Report only processes that hold or leak at least SIZE' -r
complete -c memleak -n "__fish_memleak_needs_command" -l color -d 'When to use colour' -r -f -a "auto\t''
always\t''
never\t''"
complete -c memleak -n "__fish_memleak_needs_command" -l label-env -d 'Record this variable of each process\'s environment' -r
complete -c memleak -n "__fish_memleak_needs_command" -s o -l output -d 'Write the report to FILE' -r -F
complete -c memleak -n "__fish_memleak_needs_command" -l format -d 'Format where no suffix tells it' -r -f -a "table\t'Columns for people'
json\t'One JSON object a line'
csv\t'Comma-separated values with one header'
prometheus\t'Sums for Prometheus, in its text format'
influx\t'Points for InfluxDB, in its line protocol'
html\t'A page to look at in a browser'
collapsed\t'Call stacks and what leaked by them, one a line, for flame graphs'
pprof\t'A profile for `go tool pprof` and others'
dhat\t'A profile for valgrind\'s `dh_view.html`'
junit\t'Results of tests, as `JUnit`\'s XML has them'
sarif\t'Results of analysis (SARIF 2.1.0), each at a line of the sources'
github\t'Commands of GitHub\'s workflows, which annotate lines of the sources'
gitlab\t'GitLab\'s report of code quality'
markdown\t'Markdown, for summaries and comments'"
complete -c memleak -n "__fish_memleak_needs_command" -l metrics-labels -d 'Labels of metrics' -r -f -a "comm\t''
user\t''
cgroup\t''
jobid\t''
container\t''
pod\t''"
complete -c memleak -n "__fish_memleak_needs_command" -l rotate -d 'Put a report file aside at SIZE' -r
complete -c memleak -n "__fish_memleak_needs_command" -l listen -d 'Serve metrics at this address' -r
complete -c memleak -n "__fish_memleak_needs_command" -s a -l all -d 'Watch every process of the machine except memleak, including those that start later'
complete -c memleak -n "__fish_memleak_needs_command" -l no-children -d 'Watch only the processes of -p, not those that they have started or will start'
complete -c memleak -n "__fish_memleak_needs_command" -l live -d 'Each interval, also report the running processes: the memory that they hold, and its growth'
complete -c memleak -n "__fish_memleak_needs_command" -l no-default-suppressions -d 'Show what the C and C++ libraries keep as any other leak'
complete -c memleak -n "__fish_memleak_needs_command" -s q -l quiet -d 'Print only errors and bad news'
complete -c memleak -n "__fish_memleak_needs_command" -s v -l verbose -d 'Print more'
complete -c memleak -n "__fish_memleak_needs_command" -l args -d 'Show command lines'
complete -c memleak -n "__fish_memleak_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c memleak -n "__fish_memleak_needs_command" -s V -l version -d 'Print version'
complete -c memleak -n "__fish_memleak_needs_command" -a "run" -d 'Launch a command and follow it and all its children until they exit'
complete -c memleak -n "__fish_memleak_needs_command" -a "doctor" -d 'Test whether memleak run works here, and say what prevents it and how to fix that'
complete -c memleak -n "__fish_memleak_needs_command" -a "report" -d 'Report and judge what sessions have saved as JSON lines, of one or of many'
complete -c memleak -n "__fish_memleak_using_subcommand run" -l wait-all -d 'Wait for all processes of the tree' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l user -d 'Run the command as this user' -r -f -a "(__fish_complete_users)"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l probes -d 'Probes: shared, private, inside' -r -f -a "shared\t'The system\'s files'
private\t'Copies that only the command sees'
inside\t'The same, and the copy of the C library counts by itself'"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l max-allocs -d 'Live blocks to track' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l allocator -d 'Count a program\'s own allocator' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l lost -d 'Tell lost from reachable' -r -f -a "auto\t'In `run`, where the kernel lets memleak hold processes unseen; elsewhere as `Never`'
always\t'For each process with blocks that it never freed'
never\t'Only where a gate asks for it'"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l lost-timeout -d 'Hold a process for that long at the most' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l stacks -d 'Tell which calls allocated what leaked' -r -f -a "auto\t'In `run`, where the kernel can do it, and where another option needs them; elsewhere as `Never`'
always\t''
never\t''"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l suppressions -d 'Ignore leaks that FILE names' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand run" -l only-stack -d 'Show only leaks with such a function or file on their stack' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l gen-suppressions -d 'Print a suppression for each place that is shown' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l fail-on-leak -d 'Fail if a process leaks more than SIZE' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l fail-on-total-leak -d 'Fail if all together leak more than SIZE' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l fail-on-lost -d 'Fail if a process loses more than SIZE' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l fail-on-total-lost -d 'Fail if all together lose more than SIZE' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l baseline -d 'Count only what leaks beyond a baseline' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand run" -l gate-comm -d 'Judge only processes of these names' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l gate-exe -d 'Judge only processes of these paths' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l leak-exitcode -d 'Exit code of a failed gate [default: 23]' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l color -d 'When to use colour' -r -f -a "auto\t''
always\t''
never\t''"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l top -d 'Places in programs to show' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l label-env -d 'Record this variable of each process\'s environment' -r
complete -c memleak -n "__fish_memleak_using_subcommand run" -l sort -d 'Order of the block by command' -r -f -a "leak\t''
lost\t''
allocs\t''
processes\t''"
complete -c memleak -n "__fish_memleak_using_subcommand run" -s o -l output -d 'Write the report to FILE' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand run" -l format -d 'Format where no suffix tells it' -r -f -a "table\t'Columns for people'
json\t'One JSON object a line'
csv\t'Comma-separated values with one header'
prometheus\t'Sums for Prometheus, in its text format'
influx\t'Points for InfluxDB, in its line protocol'
html\t'A page to look at in a browser'
collapsed\t'Call stacks and what leaked by them, one a line, for flame graphs'
pprof\t'A profile for `go tool pprof` and others'
dhat\t'A profile for valgrind\'s `dh_view.html`'
junit\t'Results of tests, as `JUnit`\'s XML has them'
sarif\t'Results of analysis (SARIF 2.1.0), each at a line of the sources'
github\t'Commands of GitHub\'s workflows, which annotate lines of the sources'
gitlab\t'GitLab\'s report of code quality'
markdown\t'Markdown, for summaries and comments'"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l metrics-labels -d 'Labels of metrics' -r -f -a "comm\t''
user\t''
cgroup\t''
jobid\t''
container\t''
pod\t''"
complete -c memleak -n "__fish_memleak_using_subcommand run" -l no-default-suppressions -d 'Show what the C and C++ libraries keep as any other leak'
complete -c memleak -n "__fish_memleak_using_subcommand run" -l leak-exitcode-wins -d 'Let it replace the command\'s own code'
complete -c memleak -n "__fish_memleak_using_subcommand run" -l allow-drain -d 'Let the gate fail a Slurm prolog or epilog'
complete -c memleak -n "__fish_memleak_using_subcommand run" -s q -l quiet -d 'Print only errors and bad news'
complete -c memleak -n "__fish_memleak_using_subcommand run" -s v -l verbose -d 'Print more'
complete -c memleak -n "__fish_memleak_using_subcommand run" -l args -d 'Show command lines'
complete -c memleak -n "__fish_memleak_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c memleak -n "__fish_memleak_using_subcommand run" -s V -l version -d 'Print version'
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -s o -l output -d 'Write to FILE instead of standard output; %p in FILE is memleak\'s pid, %h the host name, %q{VAR} an environment variable' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -l color -d 'When to use colour' -r -f -a "auto\t''
always\t''
never\t''"
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -l format -d 'Format of the findings' -r -f -a "table\t'A line for each check'
json\t'One JSON object a line'"
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -s q -l quiet -d 'Print only errors and bad news'
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -s v -l verbose -d 'Print more'
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c memleak -n "__fish_memleak_using_subcommand doctor" -s V -l version -d 'Print version'
complete -c memleak -n "__fish_memleak_using_subcommand report" -l by -d 'Add up by: process, comm, user, job, rank, node, function, file' -r -f -a "process\t'A row for each process'
comm\t'By the command name'
user\t''
job\t'By the batch job'
rank\t'By the rank within an MPI program'
node\t'By the machine'
function\t'By the function that allocated'
file\t'By the source file that allocated'"
complete -c memleak -n "__fish_memleak_using_subcommand report" -l fail-on-leak -d 'Fail if a process leaks more than SIZE' -r
complete -c memleak -n "__fish_memleak_using_subcommand report" -l fail-on-total-leak -d 'Fail if all together leak more than SIZE' -r
complete -c memleak -n "__fish_memleak_using_subcommand report" -l fail-on-lost -d 'Fail if a process loses more than SIZE' -r
complete -c memleak -n "__fish_memleak_using_subcommand report" -l fail-on-total-lost -d 'Fail if all together lose more than SIZE' -r
complete -c memleak -n "__fish_memleak_using_subcommand report" -l baseline -d 'Count only what leaks beyond a baseline' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand report" -l gate-comm -d 'Judge only processes of these names' -r
complete -c memleak -n "__fish_memleak_using_subcommand report" -l gate-exe -d 'Judge only processes of these paths' -r
complete -c memleak -n "__fish_memleak_using_subcommand report" -l leak-exitcode -d 'Exit code of a failed gate [default: 23]' -r
complete -c memleak -n "__fish_memleak_using_subcommand report" -l suppressions -d 'Ignore leaks that FILE names' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand report" -l only-stack -d 'Show only leaks with such a function or file on their stack' -r
complete -c memleak -n "__fish_memleak_using_subcommand report" -l color -d 'When to use colour' -r -f -a "auto\t''
always\t''
never\t''"
complete -c memleak -n "__fish_memleak_using_subcommand report" -l top -d 'Places in programs to show' -r
complete -c memleak -n "__fish_memleak_using_subcommand report" -l sort -d 'Order of the block by command, and of --by' -r -f -a "leak\t''
lost\t''
allocs\t''
processes\t''"
complete -c memleak -n "__fish_memleak_using_subcommand report" -s o -l output -d 'Write the report to FILE' -r -F
complete -c memleak -n "__fish_memleak_using_subcommand report" -l format -d 'Format where no suffix tells it' -r -f -a "table\t'Columns for people'
json\t'One JSON object a line'
csv\t'Comma-separated values with one header'
prometheus\t'Sums for Prometheus, in its text format'
influx\t'Points for InfluxDB, in its line protocol'
html\t'A page to look at in a browser'
collapsed\t'Call stacks and what leaked by them, one a line, for flame graphs'
pprof\t'A profile for `go tool pprof` and others'
dhat\t'A profile for valgrind\'s `dh_view.html`'
junit\t'Results of tests, as `JUnit`\'s XML has them'
sarif\t'Results of analysis (SARIF 2.1.0), each at a line of the sources'
github\t'Commands of GitHub\'s workflows, which annotate lines of the sources'
gitlab\t'GitLab\'s report of code quality'
markdown\t'Markdown, for summaries and comments'"
complete -c memleak -n "__fish_memleak_using_subcommand report" -l metrics-labels -d 'Labels of metrics' -r -f -a "comm\t''
user\t''
cgroup\t''
jobid\t''
container\t''
pod\t''"
complete -c memleak -n "__fish_memleak_using_subcommand report" -l leak-exitcode-wins -d 'Let it replace the command\'s own code'
complete -c memleak -n "__fish_memleak_using_subcommand report" -l allow-drain -d 'Let the gate fail a Slurm prolog or epilog'
complete -c memleak -n "__fish_memleak_using_subcommand report" -l no-default-suppressions -d 'Show what the C and C++ libraries keep as any other leak'
complete -c memleak -n "__fish_memleak_using_subcommand report" -s q -l quiet -d 'Print only errors and bad news'
complete -c memleak -n "__fish_memleak_using_subcommand report" -s v -l verbose -d 'Print more'
complete -c memleak -n "__fish_memleak_using_subcommand report" -l args -d 'Show command lines'
complete -c memleak -n "__fish_memleak_using_subcommand report" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c memleak -n "__fish_memleak_using_subcommand report" -s V -l version -d 'Print version'
