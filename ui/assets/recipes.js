// Recipes: mixes that were kept under a name. Each can be taken into a lane, made into an adapter or a
// merged model (queued jobs), or forgotten.

import { ago, api, button, h, short, sureButton, toast } from './dom.js';

export async function recipes(element, page) {
  const list = h('ul', { class: 's-talks', 'data-testid': 'recipes' });
  const intro = h('p', { class: 's-quiet' }, 'A recipe is a base with weighted adapters. “Keep mix” in a lane '
    + 'makes one; every lane on the same base can take it.');
  element.replaceChildren(h('div', { class: 's-shelf-head' }, h('h2', {}, 'Recipes')), intro, list);
  const refresh = async () => {
    page.choices = await api('/api/chat/choices');
    const found = page.choices.recipes;
    list.replaceChildren(...(found.length ? found.map((one) => item(one, page, refresh))
      : [h('li', { class: 's-quiet' }, 'None yet. Move the sliders of a lane until it is right, then keep the mix.')]));
  };
  await refresh();
}

function item(recipe, page, refresh) {
  const act = async (path, body, said) => {
    try {
      const made = await api(path, body);
      toast(said(made));
      await refresh();
    } catch (error) { toast(error.message, 'error'); }
  };
  const make = (kind) => act('/api/chat/recipes', { kind, name: recipe.name, model: recipe.model,
    stack: recipe.stack }, (made) => `Queued as “${made.name}”; Runs shows how it goes.`);
  return h('li', {}, h('div', { class: 's-recipe' }, h('b', {}, recipe.name),
    h('span', { class: 's-quiet s-recipe-parts' }, short(recipe.model), recipe.stack.map(({ name, weight }) =>
      h('span', {}, h('b', {}, short(name)), ` × ${weight}`)))),
  h('span', { class: 's-grow' }), h('span', { class: 's-quiet' }, ago(recipe.created)),
  button('Into a lane', () => page.take(recipe), '', { title: 'Add a lane with this mix to the chat' }),
  button('Make an adapter', () => make('mix'), '', { title: 'One LoRA that acts like the mix' }),
  button('Merge', () => make('merge'), '', { title: 'A whole model, with a certificate' }),
  sureButton('Delete', 'Really delete?', () => act('/api/chat/recipes/delete', { name: recipe.name },
    () => `“${recipe.name}” is forgotten.`), 's-tool'));
}
