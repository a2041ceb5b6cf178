// Prompt suites.
export class Suites { constructor(page) { this.page = page; } async show(element) { element.replaceChildren(); } }
