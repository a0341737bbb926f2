(* Waits in the way that its argument names, and then tells the version of Part that is live and
   how often Part was asked. It ends with its input. A system call that fails because of a signal
   ends it with status 2. *)

external hold : int -> int = "waits_hold"

let byte = Bytes.create 1

let accept () =
  let socket = Unix.socket Unix.PF_INET Unix.SOCK_STREAM 0 in
  Unix.bind socket (Unix.ADDR_INET (Unix.inet_addr_loopback, 0));
  Unix.listen socket 1;
  (match Unix.getsockname socket with
  | Unix.ADDR_INET (_, port) -> Printf.printf "%d\n%!" port
  | Unix.ADDR_UNIX _ -> assert false);
  fst (Unix.accept socket) |> Unix.close

let sink = ref []

(* Until another version is live: nothing but the loop may bring it in. *)
let busy work =
  let first = Part.version () in
  while Part.version () = first do
    work ()
  done

let allocate () = sink := [ Sys.opaque_identity 1.5 ]

let wait = function
  | "select" -> ignore (Unix.select [ Unix.stdin ] [] [] (-1.))
  | "read" -> ignore (Unix.read Unix.stdin byte 0 1)
  | "sleep" -> busy (fun () -> Unix.sleepf 0.02)
  | "system" -> ignore (Sys.command "read line")
  | "accept" -> accept ()
  | "allocating" -> busy allocate
  | "compacting" ->
      busy (fun () ->
          allocate ();
          Gc.compact ())
  | "computing" -> busy ignore
  | "holding" -> ignore (hold 0)
  | other -> failwith other

let rec await_end () =
  match input_char stdin with _ -> await_end () | exception End_of_file -> ()

let () =
  print_endline "ready";
  try
    wait Sys.argv.(1);
    let version = Part.version () in
    Printf.printf "version %d %d\n%!" version (Part.count ());
    await_end ()
  with Unix.Unix_error (error, call, _) ->
    Printf.printf "%s: %s\n%!" call (Unix.error_message error);
    exit 2
